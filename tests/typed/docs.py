"""Type checks own_network.py and the README's, the tutorials' and docs/extend's code: `python tests/typed/docs.py`."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    """Writes each page's blocks as one script, runs basedpyright on all, and returns its exit status.

    A copy of own_network.py is checked with them, by the stricter rules that it states itself. The folder is outside of
    the repository, so that the types are those of the installed package.
    """
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
        *sorted((ROOT / "docs" / "extend").glob("*.md")),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            code = []
            for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
                if named := re.match(r"# (\w+\.py)\n", block):  # a file of the reader's, which the page imports
                    (Path(folder) / named[1]).write_text(block)
                else:
                    code.append(block)
            (Path(folder) / f"{page.stem}_page.py").write_text("\n".join(code))
        shutil.copy2(ROOT / "tests" / "typed" / "own_network.py", folder)
        (Path(folder) / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
        checker = Path(sys.executable).with_name("basedpyright")
        return subprocess.run([checker, "--pythonpath", sys.executable, "-p", folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
