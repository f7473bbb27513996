"""The command `unnoise recipes`: the ledger of all recipes, and one entry in full."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ...shared.errors import UsageError
from ..ledger import LEDGER, Entry, Paper, entry_of
from ..program import program
from ..recipes import RECIPES, find

if TYPE_CHECKING:
    from ..recipe import Recipe

COLUMNS = (35, 23, 20, 15)
"""The widths of the columns of the list: recipe, data, expected, here."""
WIDTH = 100
KEY = 12
"""The width of the left column of an entry."""


@dataclass(frozen=True)
class Recipes:
    """Lists the recipes by paper: data, the published figures, and the result of a run with this package.

    `unnoise recipes NAME` shows one recipe in full: paper, data, network, settings, the published figures with their
    protocol, cost, results of runs, and the commands to train, sample and evaluate.
    """

    name: tyro.conf.Positional[str] = ""
    """Name of a recipe, such as ddpm-cifar10, or of a paper, such as ddpm; empty for all."""
    markdown: Path | None = None
    """File to write the list to as Markdown, with networks and costs, such as docs/recipes.md."""

    def execute(self) -> None:
        """Prints or writes the list, or prints an entry."""
        if self.markdown is not None:
            if self.name:
                raise UsageError(f"--markdown writes the list of all recipes: leave out {self.name}")
            from ...shared.training.folder import write_text
            from .outputs import output_path

            path = output_path(self.markdown, (".md",), "--markdown")
            write_text(path, markdown())
            print(f"written to {path}")
        elif self.name and self.name not in LEDGER:
            print(in_full(self.name))
        else:
            papers = [LEDGER[self.name]] if self.name else list(LEDGER.values())
            print("\n".join(listing(papers)))
            print(f"\nOne recipe in full: {program()} recipes NAME. Train it: {program()} train NAME.")


def listing(papers: Iterable[Paper]) -> list[str]:
    """Returns the lines of the list of the recipes of some papers, each of at most 100 columns."""
    lines = row(("recipe", "data", "expected", "here"))
    for paper in papers:
        lines += ["", *textwrap.wrap(paper.line(), WIDTH)]
        for entry in paper.entries:
            lines += row((entry.recipe, entry.data, entry.headline(), entry.result()))
    return lines


def row(cells: Sequence[str]) -> list[str]:
    """Returns the lines of a row of the list, whose cells are broken into lines."""
    broken = [
        [line for part in cell.split("\n") for line in textwrap.wrap(part, width)]
        for cell, width in zip(cells, COLUMNS, strict=True)
    ]
    height = max(map(len, broken))
    padded = [cell + [""] * (height - len(cell)) for cell in broken]
    return [
        (" " + "  ".join(f"{part:{width}}" for part, width in zip(line, COLUMNS, strict=True))).rstrip()
        for line in zip(*padded, strict=True)
    ]


def in_full(name: str) -> str:
    """Returns the entry of a recipe in full; of a recipe of one's own the settings, cost and commands.

    Raises:
        UsageError: for an unknown name; the message suggests the nearest one.
    """
    recipe = find(name)
    from ..parts import write

    if name in RECIPES:
        about = inspect.getdoc(RECIPES[name]) or ""
        paper, entry = entry_of(name)
        blocks = [about, *of_entry(paper, entry, recipe)]
    else:
        entry, blocks = None, ["a recipe of your own, which the ledger does not have"]
    settings = {
        f.name: write(getattr(recipe, f.name)) for f in fields(recipe) if f.name not in ("data", "network", "figure")
    }
    every = [
        *([] if entry else [item("data", [write(recipe.data)]), item("network", [network_of(recipe)])]),
        item("settings", [f"{key} = {value}" for key, value in settings.items()]),
        item("commands", commands(name, recipe, entry)),
    ]
    return "\n\n".join([name, *blocks, *every])


def of_entry(paper: Paper, entry: Entry, recipe: Recipe) -> list[str]:
    """Returns the blocks of an entry: paper, data, network, published figures, cost and results here."""
    from ..parts import write

    shape = " x ".join(map(str, entry.shape))
    if len(entry.shape) == 1:
        size = f"windows of {shape} tokens, a vocabulary of {entry.levels:,}"
    else:
        size = f"{shape}, {entry.levels} quantization levels"
    published = [figure.line() for figure in entry.expected] or ["no figure"]
    cost = [entry.cost(recipe).text(), *(text for text in (entry.hardware, entry.time) if text)]
    here = ["a test, trained by make smoke"] if entry.test else [r.line() for r in entry.here] or ["not yet"]
    return [
        item("paper", [paper.line()]),
        item("data", [f"{entry.data}: {size}", write(recipe.data)]),
        item("network", [f"{entry.network}, {entry.parameters:,} parameters", network_of(recipe)]),
        item("expected", [*published, *([entry.note] if entry.note else [])]),
        item("cost", cost),
        item("run here", here),
    ]


def network_of(recipe: Recipe) -> str:
    """Returns the network of a recipe in the notation of parts."""
    from ..parts import write

    return write(getattr(recipe, "network", None))


def commands(name: str, recipe: Recipe, entry: Entry | None) -> list[str]:
    """Returns the commands that train, sample and evaluate a recipe, and draw its figure."""
    from ..recipe import NoFigure

    options = f" {entry.options}" if entry and entry.options else ""
    run = f"runs/{name.rpartition(':')[2]}"
    figure = [] if isinstance(recipe.figure, NoFigure) else [f"{program()} reproduce {name}{options}"]
    train = f"{program()} train {name}{options}"
    return [train, f"{program()} sample {run}", f"{program()} evaluate {run}", *figure]


def item(key: str, texts: Sequence[str]) -> str:
    """Returns a block with a key at the left of its first line; each text begins on a line of its own."""
    indent = " " * KEY
    lines = [
        line
        for text in texts
        for line in textwrap.wrap(
            text,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=f"{indent}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    return f"{key:{KEY}}" + "\n".join(lines)[KEY:]


def markdown() -> str:
    """Returns the ledger as a Markdown page, whose links are relative to the folder `docs`."""
    from .. import report

    text = (
        "# Recipes\n\n"
        "`make recipes` writes this page from the ledger, the package `experiments/ledger/`. Expected figures are "
        "those that the recipes quote from the papers: a FID is that of 50,000 samples, a code length that of the test "
        "set. The cost is what the training sees, steps times batch. Results here are of one seed unless their page "
        'states otherwise; what is marked "not yet" has not been trained here at this size. `unnoise recipes` with the '
        "name of a recipe shows its protocol, settings and commands.\n"
    )
    head = ["recipe", "data", "network", "parameters", "expected", "cost", "here"]
    for paper in LEDGER.values():
        rows = [markdown_row(entry) for entry in paper.entries]
        text += f"\n## {paper.line()}\n\n{report.table(head, rows)}\n"
    return text


def markdown_row(entry: Entry) -> list[str]:
    """Returns the cells of an entry in the Markdown page."""
    cost = entry.cost(RECIPES[entry.recipe]()).text()
    here = "<br>".join(f"[{result.text()}]({result.page})" for result in entry.here) or entry.result()
    expected = "<br>".join(f"{figure.text()}{of(figure.at)}" for figure in entry.expected) or entry.headline()
    return [entry.recipe, entry.data, entry.network, f"{entry.parameters:,}", expected, cost, here]


def of(settings: str) -> str:
    """Returns the settings of a figure in brackets; an empty text for none."""
    return f" ({settings})" if settings else ""
