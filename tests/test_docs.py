"""The README's code runs, and says what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", README, re.S) if not b.startswith("# not run")]


CODED = "\nassert bits.isfinite().all() and (bits > 0).all() and len(bits) == 8\n"
CHECKS = {
    "ddpm": CODED,
    "guidance": "\nassert torch.isfinite(x0).all() and x0.shape == (16, 1, 8, 8)\n",
    "d3pm": CODED,
    "text": "\nassert x0.shape == (4, 64) and x0.max() < 27 and nats.isfinite().all()"
    "\nassert objective(text.windows[:4].long()).total.isfinite().all()\n",
    "score-sde": CODED,
    "heirs": "\nassert all(torch.isfinite(x).all() for x in (x0, half_way, sharper)) and code.error.shape == (8,)\n",
}


@pytest.mark.parametrize(("code", "check"), list(zip(BLOCKS, CHECKS.values(), strict=True)), ids=CHECKS)
def test_code_block_runs(code, check, tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit.script`", "-c", code + check],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_the_two_readings_of_an_output_as_the_docs_show_them(tmp_path):
    """The example runs, and its table holds what it prints."""
    page = (Path(__file__).parent.parent / "docs" / "readings.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.S)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code[0]], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    table = [re.findall(r"0\.\d{3}", line) for line in page.splitlines() if line.startswith("| the ") and "**" in line]
    assert re.findall(r"0\.\d+", result.stdout) == [number for row in table for number in row]
    assert len(table) == 2


def test_order_of_the_readme():
    commands, picture, code = README.index("make demo"), README.index("docs/demo.png"), README.index("```python")
    assert commands < README.index("make test") < picture < code
    assert all(
        sum(bool(line.strip()) for line in b.splitlines()) <= 12 for b in BLOCKS if "bits =" in b
    )  # twelve lines for each family
    assert (Path(__file__).parent.parent / "docs" / "demo.png").exists()


def test_links_lead_somewhere():
    root = Path(__file__).parent.parent
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
