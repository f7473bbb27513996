"""The code in the documentation runs, and the names and links in it lead somewhere."""

import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from unnoise.experiments.cli import main
from unnoise.experiments.cli.evaluating import EvaluateSamples
from unnoise.experiments.cli.main import COMMANDS
from unnoise.experiments.cli.recipe_options import arguments_in, option, settings_of, with_parts
from unnoise.experiments.recipes import PAPERS, RECIPES, find

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), *sorted((DOCS / "extend").glob("*.md"))]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

OWN = [page for page in PROSE if page.parent in (ROOT, DOCS, *(p.parent for p in PAGES)) and page.stem != "importing"]

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


FILE = re.compile(r"# (\w+\.py)\n")
"""The first line of a Python block that is a file of the reader's."""


def blocks(page):
    """The Python blocks of a page, those that run and those that are marked as not run, without the reader's files."""
    found = [block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if not FILE.match(block)]
    skipped = [block for block in found if block.startswith("# not run")]
    return [block for block in found if block not in skipped], skipped


def write_files(page, folder):
    """Writes the Python blocks of a page that are files of the reader's; for the README those of the other pages."""
    pages = [page] if page.name != "README.md" else sorted((DOCS / "extend").glob("*.md"))
    for block in re.findall(r"```python\n(.*?)```", "\n".join(p.read_text() for p in pages), re.S):
        if named := FILE.match(block):
            (folder / named[1]).write_text(block)


def commands(page):
    """The words of each command line `unnoise ...` in the code blocks of a page, without the program's name."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    code = "\n".join(text for language, text in fenced if not language).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in code.splitlines() if line.startswith("unnoise ")]


def given(words, name):
    """The value of an option in the words of a command line, or None."""
    return words[words.index(name) + 1] if name in words else None


def lines_of(page, folder):
    """The command lines of a page for `doc_commands.py`, which runs those of small recipes and of their runs."""
    lines, trained = [], dict(RUNS)
    for words in commands(page):
        command, *rest = words
        name = rest[0] if rest else ""
        if command in ("train", "reproduce"):
            recipe = trained.get(name, (name, False))[0]
            small = page in EXTEND or recipe.endswith("-smoke") or ".py:" in recipe
            trained[given(words, "--out") or f"runs/{name.rpartition(':')[2]}"] = (recipe, small)
            lines.append({"words": words, "run": small, "of": None, "folder": str(folder)})
        elif command in ("sample", "evaluate"):
            assert name in trained, f"{page.name} does not train {name}, and RUNS does not have it"
            of, small = trained[name]
            trained[given(words, "--out")] = trained[name]
            lines.append({"words": words, "run": small, "of": of, "folder": str(folder)})
        else:
            lines.append({"words": words, "run": False, "of": None, "folder": str(folder)})
    return lines


RUNS = {"runs/demo/ddpm": ("ddpm-digits", False), "runs/longer": ("ddpm-digits", False)}
"""Runs that pages use without training them: the recipe of each, and whether the page has trained it."""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit.script`", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.fixture(scope="session")
def worker():
    """A process that has imported the package and runs lines and code in processes that it forks."""
    command = [sys.executable, Path(__file__).with_name("doc_commands.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def done(worker, lines, folder):
    """Runs lines, which must succeed."""
    output = folder / "output.txt"
    worker.stdin.write(json.dumps({"lines": lines, "output": str(output)}) + "\n")
    worker.stdin.flush()
    failed = json.loads(worker.stdout.readline())
    assert not failed, f"{failed}\n{output.read_text()[-3000:]}"


def code_of(page, folder, more=""):
    """The blocks of a page as one file of code, as a line for `doc_commands.py`."""
    file = folder / "code_of_the_page.py"
    file.write_text("\n".join(blocks(page)[0]) + more)
    return {"code": str(file), "folder": str(folder)}


EXTEND = sorted((DOCS / "extend").glob("*.md"))
"""The pages on parts of one's own, whose code runs together with their commands."""


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)[0] and p not in EXTEND], ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, tmp_path, worker):
    """The blocks of a page run one after the other, as one script, beside the files of the page."""
    write_files(page, tmp_path)
    done(worker, [code_of(page, tmp_path, CHECKS.get(page.stem, ""))], tmp_path)


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


WITH_COMMANDS = [page for page in OWN if commands(page)]


def test_pages_on_own_parts_are_short_and_complete():
    kinds = {"schedule", "transition", "loss_weight", "time_draw", "time_input", "sampler", "own_network", "data"}
    assert {page.stem for page in EXTEND} == kinds
    for page in EXTEND:
        text = page.read_text()
        assert len(text.splitlines()) <= 40, page
        assert len(blocks(page)[0]) == 1, page
        assert all(part in text for part in ("# my_", "Training(steps=20)", "unnoise.load(")), page
        assert {"train", "sample", "evaluate"} <= {words[0] for words in commands(page)}, page


SLOW = {"time_input", "time_draw", "loss_weight", "own_network", "sampler"}
"""Pages whose commands `make slow` runs; those on a schedule, a transition and data are run by every `make test`."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else ()) for page in WITH_COMMANDS],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_of_a_page(page, tmp_path, worker):
    """Commands of small recipes run with the files of the page; of all others command, recipe and options exist."""
    write_files(page, tmp_path)
    lines = lines_of(page, tmp_path)
    done(worker, [*([code_of(page, tmp_path)] if page in EXTEND else []), *lines], tmp_path)
    if page in EXTEND:
        evaluated = [line["words"][1] for line in lines if line["words"][0] == "evaluate"]
        for folder in evaluated:
            measured = json.loads((tmp_path / folder / "evaluation.json").read_text())
            assert [value for name, value in measured.items() if name.startswith("bits_per")]
            assert list((tmp_path / folder).glob("samples.*"))


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


@functools.cache
def source_files():
    folders = ("continuous", "discrete", "sde", "shared", "experiments", "tests")
    return {path: path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}


@functools.cache
def defined_names():
    """The classes, constants and types of the package."""
    sources = "\n".join(text for path, text in source_files().items() if ROOT / "tests" not in path.parents)
    found = re.findall(r"^ *(?:class (\w+)|([A-Z]\w+)\b.*=)", sources, re.M)
    return {name for pair in found for name in pair}


@functools.cache
def words_of_sources():
    """Every word of the package and its tests, and the names of their files."""
    files = source_files()
    return set(re.findall(r"\w+", "\n".join(files.values()))) | {path.stem for path in files}


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_class_names_in_the_text_exist(page):
    """Names of classes in backquotes are classes, constants or types of the package, or of the projects in FOREIGN."""
    own = set(re.findall(r"^class (\w+)", "\n".join(p.read_text() for p in (DOCS / "extend").glob("*.md")), re.M))
    known = defined_names() | FOREIGN | own  # the classes of the reader's files
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    if page.name == "CHANGELOG.md":  # the first column of its table holds old names
        text = "\n".join(line.split(" | ", 1)[-1] for line in text.splitlines())
    quoted = " ".join(re.findall(r"`([^`]+)`", text))
    named = set(re.findall(r"(?<![\w./-])(?:\w+\.)*([A-Z][a-z]+(?:[A-Z]\w*)?)\(", quoted))
    named |= set(re.findall(r"(?<![\w./-])([A-Z][a-z]+[A-Z]\w*)\b", quoted))
    missing = named - known
    assert not missing


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_functions_and_attributes_in_the_text_exist(page):
    """Names with an underscore, in backquotes, occur in the sources; importing.md has those of other projects."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    if page.name == "CHANGELOG.md":
        text = "\n".join(line.split(" | ", 1)[-1] for line in text.splitlines())
    quoted = " ".join(re.findall(r"`([^`]+)`", text))
    missing = set(re.findall(r"\b[a-z]{3,}_\w+\b", quoted)) - words_of_sources()
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


def options_of(recipe):
    """The options of a recipe: its settings, the arguments of their parts, and shorter names."""
    found = {option(short) for short in recipe.shorthands}
    for setting in settings_of(recipe, recipe.catalog):
        found.add(option(setting.path))
        found |= {option(f"{setting.path}.{path}") for path, _, _ in arguments_in(setting.value)}
    return found


def test_commands_and_options_in_the_text_exist(capsys):
    """Commands, recipes, options and make targets that the prose names; the code blocks have tests of their own."""
    whole = "\n".join(page.read_text() for page in PROSE if "results" not in page.parts)
    text = re.sub(r"^```.*?^```$", "", whole, flags=re.M | re.S)
    text = re.sub(r"^(\| [\w, -]+ \| )`--.*?( \| )", r"\1\2", text, flags=re.M)  # earlier options, in the changelog
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", whole, re.M)) <= targets
    for command, recipe in re.findall(r"`unnoise ([a-z][\w-]*)(?: ([a-z][\w-]*))?[^`]*`", text):
        assert command in COMMANDS, command
        assert command not in ("train", "reproduce") or not recipe or recipe in RECIPES, recipe
    options = set().union(*(options_of(find(name)) for name in RECIPES)) | {
        "--check",
        "--help",
        "--version",
        "--out",
        "--resume",
        "--module",
        "--max-restarts",  # of torchrun
        "--signal",  # of sbatch
        *(f"--{f.name}" for f in fields(EvaluateSamples)),
    }
    own = ("demo", "import", "export", "sample", "evaluate", "compare", "submit", "recipes", "plot-schedules")
    for words in (*((command,) for command in own), ("ablate", "ddpm-smoke")):
        assert main([*words, "--help"]) == 0
        options |= set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    named = {name.rstrip(".") for name in re.findall(r"(?<=[\s`])--[a-z][\w.-]+", text)}
    missing = named - options
    assert not missing


def changed_options():
    """The rows of the changelog's table of options: the recipes, and the new options of each."""
    rows = re.findall(r"^\| ([\w, -]+) \| `--.*? \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    return [(names.split(", "), re.findall(r"`(--[^`]+)`", new)) for names, new in rows]


def test_new_options_in_the_changelog():
    """Their parts are read, and the others are options, for the smoke recipe of each paper of their row."""
    count = 0
    for names, options in changed_options():
        assert set(names) <= set(PAPERS)
        for name in names:
            recipe = find(f"{name}-smoke")
            for words in map(shlex.split, options):
                changed, rest = with_parts(recipe, words)
                known = options_of(changed)
                assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, (name, words)
                count += 1
    assert count > 130


def test_recipes_in_the_makefile_exist():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    papers = re.search(r"^PAPERS := (.*)$", text, re.M)[1].split()
    texts = re.search(r"^TEXTS := (.*)$", text, re.M)[1].split()
    assert {f"{paper}-digits" for paper in papers} | set(texts) <= set(RECIPES)
    for recipe, options in re.findall(r"unnoise reproduce ([\w-]+)([^$&\n]*)", text):
        assert recipe in RECIPES
        assert set(re.findall(r"--[\w.-]+", options)) <= options_of(find(recipe)) | {"--out"}


def test_no_page_names_a_local_path():
    for page in PROSE:
        assert not re.search(r"/(?:tmp|home|work|root)/", page.read_text()), page
