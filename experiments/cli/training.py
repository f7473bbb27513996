"""The commands `unnoise train` and `unnoise reproduce`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...shared.data import Batches
from ...shared.errors import UsageError
from ...shared.progress import bar, beside_bar
from ...shared.serialization import deserialize
from ...shared.training.checkpoint import first_intact, list_checkpoints, read, silently
from ...shared.training.folder import writable
from ..notation import write
from ..own_files import module_options, named_in_file
from ..program import program
from ..recipe import NoFigure, Recipe
from ..recipes import RECIPES, find
from ..reproduce import train_recipe
from .arguments import Modules
from .recipe_options import option, options_of, settings_of, with_options, with_parts


@dataclass(frozen=True)
class Train:
    """Trains a recipe: every part and setting of it is an option.

    `unnoise recipes` lists the recipes, `unnoise train RECIPE --help` the settings of one, `unnoise parts` the parts
    that can be chosen. A recipe of your own is FILE.py:FUNCTION or MODULE:FUNCTION, a part of your own FILE.py:NAME, as
    in `unnoise train ddpm-digits --schedule "my_file.py:Linear(last=0.03)"`. RECIPE can also be the folder of a run,
    whose settings are then taken. `--data latents.npy` trains on real-valued arrays in a file or a folder of files.

    On several GPUs: torchrun --nproc-per-node 8 -m unnoise train RECIPE [options]; the batch of the recipe is that of
    all GPUs together, and noise, order and losses are those of one GPU. On a Slurm cluster: unnoise submit.
    """

    recipe: tyro.conf.Positional[str]
    """Name of a recipe such as ddpm-digits, FILE.py:FUNCTION, or the folder of a run."""


@dataclass(frozen=True)
class Reproduce:
    """Draws the figure and the table of a paper from a recipe, which is trained first where needed.

    `unnoise reproduce RECIPE --help` describes the figure and lists the settings.
    """

    recipe: tyro.conf.Positional[str]
    """Name of a recipe such as ddpm-digits, or FILE.py:FUNCTION."""


def options_for(command: str, name: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of a command with the settings of a recipe as options, and the arguments that are left.

    With `--resume` the settings are those of the run in `--out`.
    """
    recipe, resume = recipe_named(name), command == "train" and "--resume" in arguments
    out = folder_of(name)
    if resume and (folder := given_out(arguments) or out) and list_checkpoints(folder / "checkpoints"):
        recipe = recipe_named(str(folder))
    base, without = recipe, ("figure",) if command == "train" else ()
    recipe, rest = with_parts(recipe, arguments, without)
    fields: list[Any] = [
        ("out", Annotated[Path, tyro.conf.arg(help=OUT)], field(default=out)),
    ]
    if command == "train":
        fields.append(("resume", Annotated[bool, tyro.conf.arg(help=RESUME)], field(default=False)))
    fields.append(("module", Modules, field(default=())))

    def execute(options: Any) -> None:
        chosen = with_options(recipe, options, without)
        if command == "train":
            train(chosen, name, options.out, base if resume else None)
        else:
            reproduce(chosen, options.out)

    cls = make_dataclass(command.title(), [*fields, *options_of(recipe, without)], namespace={"execute": execute})
    does = type(recipe.figure).__doc__ or ""
    cls.__doc__ = (
        f"Trains {name}. {description_of(name)}\n\nOn several GPUs: torchrun --nproc-per-node 8 -m unnoise train {name}"
        if command == "train"
        else f"Draws the figure of {name}: {does.strip()} Parts that "
        "are already trained in --out are loaded, and interrupted training is continued."
    )
    return cls, rest


def description_of(name: str) -> str:
    """Returns the docstring of the function that returns a recipe; an empty text for the folder of a run."""
    if is_run(name):
        return ""
    function = RECIPES[name] if name in RECIPES else named_in_file(*name.rsplit(":", 1))
    return inspect.getdoc(function) or ""


OUT = "Folder for checkpoints, samples and results; it must not contain another run."
RESUME = "Whether the run in --out continues from its newest intact checkpoint, with its settings and those given here."


def is_run(name: str) -> bool:
    """Returns whether a name is the folder of a run."""
    return bool(list_checkpoints(Path(name) / "checkpoints"))


def recipe_named(name: str) -> Recipe:
    """Returns the recipe of that name, or of the run in that folder."""
    if name in RECIPES or not is_run(name):
        return find(name)
    _, (description, _) = first_intact(Path(name), read, say=silently)
    recipe = deserialize(description["experiment"])
    if not isinstance(recipe, Recipe) or getattr(recipe, "training", None) is None:
        raise UsageError(f"the run in {name} has no recipe for training: give the name of a recipe")
    return recipe


def folder_of(name: str) -> Path:
    """Returns the default folder of a run: that of the run itself, or runs/NAME."""
    run = name not in RECIPES and is_run(name)
    return Path(name) if run else Path("runs") / name.rpartition(":")[2]


def given_out(arguments: Sequence[str]) -> Path | None:
    """Returns the value of --out in the arguments, or None."""
    for word, after in pairwise([*arguments, ""]):
        if word == "--out" or word.startswith("--out="):
            return Path(word.partition("=")[2] or after)
    return None


def train(recipe: Recipe, name: str, out: Path, resumed: Recipe | None) -> None:
    """Trains a recipe into a folder; `resumed` is the recipe of the run that is continued, or None."""
    with emptied(out) as folder:
        if resumed is not None:
            if not list_checkpoints(folder / "checkpoints"):
                raise UsageError(
                    f"there is nothing to resume in {folder}: leave out --resume, or give the folder of the run with "
                    "--out"
                )
            for line in changes(resumed, recipe) or ["no setting was changed"]:
                print(f"resuming {folder}: {line}")
        if (rise := recipe.training.warmup or 0) + recipe.training.cooldown > recipe.training.steps:
            print(
                f"note: warmup={rise} and cooldown={recipe.training.cooldown} are more than steps="
                f"{recipe.training.steps}, so the learning rate never reaches its peak: give smaller "
                "--training.warmup and --training.cooldown"
            )
        data = recipe.load("train", bar)
        size = "x".join(map(str, data.shape))
        batches = recipe.batches(data)
        count = f"{len(batches.k)} examples" if isinstance(batches, Batches) else "a stream of examples"
        print(f"training {name} on {count} of {size} into {folder}/")
        print(f"data: {data.summary}")
        train_recipe(recipe, data, folder, bar, resume=resumed is not None, say=beside_bar)
    own = module_options()
    print(f"done: {program()} sample {folder}{own}    {program()} evaluate {folder}{own}")


def changes(before: Recipe, after: Recipe) -> list[str]:
    """Returns the settings in which two recipes differ, a line each: `--training.steps 3000 (was 1500)`."""
    whole = (recipe.self_contained() for recipe in (before, after))
    old, new = ({s.path: s.value for s in settings_of(recipe, recipe.catalog)} for recipe in whole)
    return [
        f"{option(path)} {write(value)} (was {write(old[path])})" for path, value in new.items() if value != old[path]
    ]


def reproduce(recipe: Recipe, out: Path) -> None:
    """Draws the figure of a recipe into a folder."""
    if isinstance(recipe.figure, NoFigure):
        recipe.figure.draw(recipe, out)  # refuses
    with emptied(out) as folder:
        page = recipe.figure.draw(recipe, folder, bar)
    print(f"{page.read_text()}\nwritten to {page}, with its pictures in the same folder")


@contextlib.contextmanager
def emptied(path: Path) -> Iterator[Path]:
    """Yields a folder to write to; if an error leaves it empty, it is removed with the parents created for it."""
    new = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield writable(path)
    except BaseException:
        with contextlib.suppress(OSError):  # ends at the first folder that is not empty
            for folder in new:
                folder.rmdir()
        raise
