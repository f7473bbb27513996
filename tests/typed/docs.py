"""Type checks the Python code of the README, the tutorials and docs/extend: `python tests/typed/docs.py`."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    """Writes each page's blocks as one script, runs basedpyright on all, and returns its exit status."""
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
        *sorted((ROOT / "docs" / "extend").glob("*.md")),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
            (Path(folder) / f"{page.stem}_page.py").write_text(code)
        (Path(folder) / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
        checker = Path(sys.executable).with_name("basedpyright")
        return subprocess.run([checker, "--pythonpath", sys.executable, "-p", folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
