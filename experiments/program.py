"""The name of the program, for commands that are printed."""

import os
import sys
from pathlib import Path

from ..shared.launcher import launched


def program() -> str:
    """Returns the command as the user typed it, such as `.venv/bin/unnoise`, so that printed commands can be copied."""
    return sys.argv[0] if Path(sys.argv[0]).name == "unnoise" else "unnoise"


def launch_line() -> list[str]:
    """Returns the words that start the program: by torchrun, with as many processes a node, where it was started so."""
    if launched() == 1:
        return [program()]
    return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(launched())), "-m", "unnoise"]
