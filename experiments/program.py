"""The name of the program, for commands that are printed."""

import sys
from pathlib import Path


def program() -> str:
    """Returns the command as the user typed it, such as `.venv/bin/unnoise`, so that printed commands can be copied."""
    return sys.argv[0] if Path(sys.argv[0]).name == "unnoise" else "unnoise"
