"""What needs no torch imports none: help, lists and refusals; outlines.json is what commands and recipes take."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unnoise.experiments.cli import outline, outlining, training
from unnoise.experiments.cli.table import COMMANDS
from unnoise.shared import serialization

ROOT = Path(__file__).parent.parent
LAZY = ("shared", "shared.data", "shared.metrics", "shared.training", "experiments", "experiments.pretrained")
FAST = (
    [],
    ["--help"],
    ["--version"],
    ["recipes"],
    ["train", "--help"],
    ["sample", "-h"],
    ["trian"],
    ["train"],
    ["train", "ddmp-digits"],
    ["train", "ddpm-digits", "--scheduel", "cosine"],
    ["train", "ddpm-digits", "--training.steps", "many"],
    ["train", "d3pm-digits", "--help"],
    ["demo", "--stepz", "3"],
)
STATUS = [0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 2]
PROGRAM = f"""
import json, sys
from unnoise.experiments.cli import main
from unnoise.experiments.cli import outline
outline.up_to_date = lambda: True  # a file may have been edited since
status = [main(arguments) for arguments in {FAST}]
print(json.dumps([status, [m for m in ("torch", "numpy", "scipy", "matplotlib", "pydantic") if m in sys.modules]]))
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_help_lists_and_refusals_import_no_torch():
    (status, heavy), err = python(PROGRAM)
    assert status == STATUS
    assert heavy == []
    assert "did you mean train?" in err
    assert "did you mean ddpm-digits?" in err
    assert "Unrecognized options: --scheduel, cosine" in " ".join(err.replace("│", " ").split())
    assert "--schedule SCHEDULE" in err


def test_the_outlines_are_those_of_the_commands_and_recipes():
    assert outline.FILE.read_text(encoding="utf-8") == outlining.outlines(), "run `make outlines`"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_an_outline_is_that_of_its_command(name, capsys):
    pages = [page(cls, ["--help"], capsys) for cls in (COMMANDS[name].load(), outline.of_command(name))]
    assert pages[0] == pages[1]
    assert "usage: unnoise" in pages[0]


@pytest.mark.parametrize("arguments", [["--help"], ["--scheduel", "cosine"], ["--training.seed", "x"]])
@pytest.mark.parametrize("recipe", ["ddpm-digits", "d3pm-text-chain"])
def test_the_page_of_an_outline_is_that_of_its_recipe(recipe, arguments, capsys):
    own = training.options_for("train", recipe, [])[0]
    assert page(own, arguments, capsys) == page(outline.of_recipe(recipe), arguments, capsys) != ""


def page(cls, arguments, capsys):
    with pytest.raises(SystemExit):
        outline.read(cls, arguments, "unnoise x")
    return "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("recipe", "words", "kept"),
    [
        ("ddpm-digits", "--sampling-steps 3 --training.steps=4 --schedule.steps 20 --data.batch 8", True),
        ("ddpm-digits", "--sampler ddim --sampler.eta 0.5", False),
        ("ddpm-digits", "--training.ema=decay(0.9)", False),
        ("ddpm-digits", "--data photos", False),
        ("ddpm-digits", "--module my.py", False),
        ("ddpm-digits", "--resume", False),
        ("d3pm-digits", "--transition.schedule=cosine", True),
        ("d3pm-digits", "--schedule cosine", False),  # a shorter name of the former, as is the next one
        ("d3pm-digits", "--schedule.steps 20", False),
    ],
)
def test_outlines_are_for_recipes_whose_parts_are_kept(recipe, words, kept):
    assert outline.keeps_parts(recipe, words.split()) == kept


def test_an_outline_is_not_used_after_an_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(outline, "up_to_date", lambda: False)
    monkeypatch.setattr(outline, "read", None)
    cli = importlib.import_module("unnoise.experiments.cli.main")
    assert cli.answer_from_outline("train", ["ddpm-digits", "--nothing"]) is None


@pytest.mark.parametrize("name", LAZY)
def test_lazy_packages_import_what_they_show_to_type_checkers(name):
    package = importlib.import_module(f"unnoise.{name}")
    tree = ast.parse(Path(str(package.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        home = "." * line.level + (line.module or "")
        for alias in line.names:
            if line.module:
                expected = getattr(importlib.import_module(home, package.__name__), alias.name)
            else:
                expected = importlib.import_module(f"{home}{alias.name}", package.__name__)
            assert getattr(package, alias.name) is expected, alias.name
    assert all(hasattr(package, key) for key in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    modules = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")}
    assert not any(isinstance(getattr(package, key), type(ast)) for key in set(package.__all__) & modules - {"recipes"})
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


IMPORTED = """
import json, sys, torch
before = set(sys.modules)
import unnoise.experiments.cli.running, unnoise.experiments.cli.sampling, unnoise.experiments.gaussian
other_family = [m for m in sys.modules if m.startswith(("unnoise.discrete", "unnoise.experiments.categorical"))]
import unnoise.sde, unnoise.discrete, unnoise.continuous
imported = sorted(set(sys.modules) - before)
import unnoise.experiments.pretrained.imported
from unnoise.shared import serialization
from unnoise.shared.lazy import import_until
name = "experiments.Imported"
earlier = serialization._EARLIER[name]
serialization.current({"class": name, "arguments": {}})
now = serialization._EARLIER[name]
import_until(lambda: False)
names = list(serialization._KNOWN), list(serialization._EARLIER)
print(json.dumps([other_family, imported, earlier, callable(now), *names]))
"""


def test_what_is_imported_when_and_that_every_name_in_checkpoints_is_found():
    (other_family, imported, earlier, converts, known, formerly), _ = python(IMPORTED)
    assert other_family == []
    apart = ("torch._dynamo", "torch.distributed.tensor", "scipy", "matplotlib", "torchdiffeq", "datasets", "filelock")
    assert not {*apart} & {*imported}
    assert not [
        name for name in imported if name.startswith(("unnoise.experiments.papers.", "unnoise.experiments.abl"))
    ]
    assert earlier == "unnoise.experiments.pretrained.earlier_runs"  # the module that converts it
    assert converts
    own = {name for name, value in serialization._KNOWN.items() if value.__module__.startswith("unnoise.")}
    assert own <= set(known)
    assert {"experiments.DDPM", "experiments.Chains"} <= set(formerly)
