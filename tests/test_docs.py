"""The code in the documentation runs, and the names and links in it lead somewhere."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unnoise.experiments import cli
from unnoise.experiments.recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), *sorted((DOCS / "extend").glob("*.md"))]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

CODED = "\nassert bits.isfinite().all() and (bits > 0).all() and len(bits) == 8\n"
CHECKS = {
    "README": CODED + "assert x0.isfinite().all() and x0.shape == (16, 1, 8, 8)\n",
    "ddpm_and_guidance": CODED + "assert torch.isfinite(x0).all() and x0.shape == (16, 1, 8, 8)\n",
    "d3pm": CODED + "assert k.shape == (16, 1, 8, 8) and 0 <= k.min() and k.max() < 17\n",
    "text": "\nassert x0.shape == (4, 64) and x0.max() < 27 and nats.isfinite().all() and long.shape == (4, 150)"
    "\nassert objective(text.windows[:4].long()).total.isfinite().all()\n",
    "score_sde": CODED,
    "edm_flow_and_inverse_problems": "\nassert code.error.shape == (8,)"
    "\nassert dequantizer.quantization == digits.quantization"
    "\nassert all(torch.isfinite(x).all() for x in (x0, interpolated, sharper))\n",
    "own_data": "\nassert photos.summary.startswith('24 images of 3x16x16, 3 classes: blue 8, green 8, red 8')"
    "\nassert batch['x0'].shape == (4, 3, 16, 16) and batch['label'].max() < 3 and x0.shape == (4, 32)"
    "\nassert next(iter(batches))['x0'].abs().max() <= 1"
    "\nassert denoiser(torch.zeros(2, 2), torch.tensor(0.5)).shape == (2, 2)\n",
}
FOREIGN = {"UNet2DModel", "DDPMPipeline", "Embedding", "Generator"}
"""Class names of other projects in the documentation."""


def blocks(page):
    """The Python blocks of a page, those that run and those that are marked as not run."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    skipped = [block for block in found if block.startswith("# not run")]
    return [block for block in found if block not in skipped], skipped


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit.script`", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)[0]], ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, tmp_path):
    """The blocks of a page run one after the other, as one script."""
    result = run("\n".join(blocks(page)[0]) + CHECKS.get(page.stem, ""), tmp_path)
    assert result.returncode == 0, result.stderr


def test_every_check_belongs_to_a_page():
    assert set(CHECKS) <= {page.stem for page in PAGES if blocks(page)[0]}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)[1]], ids=lambda page: page.stem)
def test_names_in_code_that_is_not_run(page):
    for block in blocks(page)[1]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pretrained":
                assert hasattr(importlib.import_module("unnoise.experiments.pretrained"), node.attr)


def test_pages_on_own_parts_are_short_and_complete():
    pages = sorted((DOCS / "extend").glob("*.md"))
    assert {page.stem for page in pages} >= {"schedule", "loss_weight", "time_draw", "time_input"}
    for page in pages:
        text = page.read_text()
        assert len(text.splitlines()) <= 40, page
        assert len(blocks(page)[0]) == 1, page
        assert all(part in text for part in ("@serializable(", "Training(steps=20)", "unnoise.load(")), page


def test_the_two_readings_of_an_output_as_the_docs_show_them(tmp_path):
    """The example runs, and its table holds what it prints."""
    page = DOCS / "readings.md"
    (code,), _ = blocks(page)
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    lines = page.read_text().splitlines()
    table = [re.findall(r"0\.\d{3}", line) for line in lines if line.startswith("| the ") and "**" in line]
    assert re.findall(r"0\.\d+", result.stdout) == [number for row in table for number in row]
    assert len(table) == 2


def test_order_and_length_of_the_readme():
    commands, picture, code = README.index("make demo"), README.index("docs/demo.png"), README.index("```python")
    assert commands < README.index("make test") < picture < README.index("pip install .") < code
    assert len(README.splitlines()) <= 100
    (example,), _ = blocks(ROOT / "README.md")
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 12
    assert (DOCS / "demo.png").exists()


def test_the_readmes_table_names_what_each_package_has():
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    packages = [importlib.import_module(name.strip("`")) for name in rows[0] if name.startswith("`unnoise")]
    assert len(packages) == 3
    elsewhere = [importlib.import_module(f"unnoise.{name}") for name in ("shared.gaussian", "shared.editing")]
    for what, *cells in rows[2:]:
        for package, cell in zip(packages, cells, strict=True):
            for name in re.findall(r"`(\w+)[`.]", cell):
                places = [package, *(elsewhere if what in ("guidance", "edit") else [])]
                assert name == "shared" or any(hasattr(place, name) for place in places), (package.__name__, name)
            for name in re.findall(r"[`,] ?`\.(\w+)`", cell):
                assert hasattr(package.DenoisingLoss, name)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_class_names_in_the_text_exist(page):
    """Names of classes in backquotes are classes, constants or types of the package, or of the projects in FOREIGN."""
    folders = ("continuous", "discrete", "sde", "shared", "experiments")
    sources = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    defined = set(re.findall(r"^ *(?:class (\w+)|([A-Z]\w+)\b.*=)", sources, re.M))
    known = {name for pair in defined for name in pair} | FOREIGN
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    if page.name == "CHANGELOG.md":  # the first column of its table holds old names
        text = "\n".join(line.split(" | ", 1)[-1] for line in text.splitlines())
    quoted = " ".join(re.findall(r"`([^`]+)`", text))
    named = set(re.findall(r"(?<![\w./-])(?:\w+\.)*([A-Z][a-z]+(?:[A-Z]\w*)?)\(", quoted))
    named |= set(re.findall(r"(?<![\w./-])([A-Z][a-z]+[A-Z]\w*)\b", quoted))
    missing = named - known
    assert not missing


OWN = [page for page in PROSE if page.parent in (ROOT, DOCS, *(p.parent for p in PAGES)) and page.stem != "importing"]


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_functions_and_attributes_in_the_text_exist(page):
    """Names with an underscore, in backquotes, occur in the sources; importing.md has those of other projects."""
    folders = ("continuous", "discrete", "sde", "shared", "experiments", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    known = set(re.findall(r"\w+", "\n".join(path.read_text() for path in files))) | {path.stem for path in files}
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    if page.name == "CHANGELOG.md":
        text = "\n".join(line.split(" | ", 1)[-1] for line in text.splitlines())
    quoted = " ".join(re.findall(r"`([^`]+)`", text))
    missing = set(re.findall(r"\b[a-z]{3,}_\w+\b", quoted)) - known
    assert not missing


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_in_the_text_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for name in re.findall(
        r"`((?:\w+/)+\w+\.(?:py|md)|(?:continuous|discrete|docs|experiments|sde|shared|tests)/[\w/]*)`", text
    ):
        assert any((place / name).exists() for place in (ROOT, ROOT / "shared", page.parent)), name


def test_links_lead_somewhere():
    for page in PROSE:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_commands_in_the_text_exist(capsys):
    """Commands, recipes, options and make targets."""
    text = "\n".join(page.read_text() for page in PROSE if "results" not in page.parts)
    text = re.sub(r"^\| command line: .*$", "", text, flags=re.M)  # the changelog names earlier options
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)) <= targets
    commands = re.findall(r"^unnoise ([\w-]+)(?: ([\w-]+))?(.*)$", text, re.M)
    for command, recipe, _ in commands:
        assert f"  {command} " in cli.USAGE
        assert command not in ("train", "reproduce") or recipe in RECIPES, recipe
    help_of = {}
    for command in (["train", "ddpm-mnist"], ["train", "mdlm-shakespeare"], ["import"], ["sample"], ["evaluate"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        help_of[command[-1]] = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<=[\s`])--[a-z][\w.-]+", text)) - {"--check", "--help"}
    assert not named - set().union(*help_of.values())


def test_no_page_names_a_local_path():
    for page in PROSE:
        assert not re.search(r"/(?:tmp|home|work|root)/", page.read_text()), page
