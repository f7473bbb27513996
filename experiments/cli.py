"""The command line: `unnoise demo | train | sample | evaluate | recipes`."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
import shlex
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..shared.data import ImageSet
from ..shared.errors import UsageError
from ..shared.progress import bar
from ..shared.training import Checkpoint, load
from ..shared.training.folder import writable
from ..shared.training.trainer import Interrupted
from . import demo
from .evaluation import Judge, bits_per_dim, draw, summary
from .experiment import Experiment
from .recipes import RECIPES, find

USAGE = """usage: unnoise COMMAND ...

  demo                train a DDPM, a D3PM and a score SDE on digits and compare them (about 9 minutes on two cores)
  train RECIPE        train one recipe, such as ddpm-digits; every setting is an option
  sample RUN          draw samples from a trained run into a picture
  evaluate RUN        bits/dim, Fréchet distance and cost of a trained run
  recipes             list the recipes

Each command explains its options with --help.
"""


@dataclass(frozen=True)
class Sample:
    """Draws samples from a trained run and writes them as one picture. The samples depend on the seed alone, not on the batch."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    out: Path = Path("samples.png")
    """The picture."""
    count: int = 64
    """How many."""
    steps: int | None = None
    """Steps of the sampler; None for the recipe's own."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained run on the held-out images of its data set and writes evaluation.json beside its checkpoints."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    count: int | None = None
    """Samples for the Fréchet distance, and held-out images; None for as many as are held out."""
    steps: int | None = None
    """Steps of the sampler; None for the recipe's own."""
    seed: int = 0
    """Seed of the noise."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Bad input gives one line on stderr and exit status 2, never a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return dispatch(arguments)
    except (UsageError, FloatingPointError, OSError) as error:
        print(f"unnoise: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except Interrupted as stop:
        again = shlex.join([demo.program(), *arguments, *([] if "--resume" in arguments else ["--resume"])])
        print(f"\nunnoise: stopped after step {stop.step} and saved in {stop.folder}; go on with: {again}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nunnoise: stopped", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Finds the command."""
    commands = {"demo": run_demo, "train": run_train, "sample": run_sample, "evaluate": run_evaluate, "recipes": run_recipes}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        raise UsageError(f"there is no command {name}: {f'did you mean {near[0]}?' if near else 'choose from ' + ', '.join(commands)}")
    commands[name](rest)
    return 0


def parse(cls: type, arguments: list[str], command: str) -> Any:
    """A dataclass from options; tyro's error boxes become one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, args=arguments, prog=f"unnoise {command}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{condensed(said.getvalue())} (`unnoise {command} --help` lists the options)") from None


def condensed(box: str) -> str:
    """What tyro's error box says, in one line."""
    said: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip("│ \t")
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if said and said[-1].startswith("Perhaps you meant"):
            said[-1] = f"({said[-1].lower()} {text.split()[0]})"
            break
        if text and text[0] not in "╭╰─-":
            said.append(text)
    return " ".join(said) or "the options cannot be read"


def run_demo(arguments: list[str]) -> None:
    """`unnoise demo`."""
    demo.run(parse(demo.Demo, arguments, "demo"))


def run_recipes(arguments: list[str]) -> None:
    """`unnoise recipes`."""
    if arguments and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"unnoise recipes takes no options, not {arguments[0]}")
    for name, preset in RECIPES.items():
        print(f"{name:18} {(preset.__doc__ or '').strip().splitlines()[0]}")
    print("\nTrain one with `unnoise train NAME`; `unnoise train NAME --help` shows every setting.")


def run_train(arguments: list[str]) -> None:
    """`unnoise train RECIPE`."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: unnoise train RECIPE [options]\n\nRecipes:")
        run_recipes([])
        if not arguments:
            raise UsageError("which recipe? Give one of the names above")
        return
    name, preset = arguments[0], find(arguments[0])
    command = make_dataclass(
        "Train",
        [
            ("experiment", Annotated[type(preset), tyro.conf.arg(name="")], field(default=preset)),
            ("out", Path, field(default=Path("runs") / name)),
            ("resume", bool, field(default=False)),
        ],
    )
    command.__doc__ = f"Trains {name}: {(type(preset).__doc__ or '').strip()} With --resume it goes on from the newest checkpoint in --out."
    options = parse(command, arguments[1:], f"train {name}")
    experiment: Experiment = options.experiment
    folder = writable(options.out)
    images = experiment.data.load("train", bar)
    print(f"training {name} on {len(images.k)} images of {'x'.join(map(str, images.shape))} into {folder}/")
    demo.train_one(experiment, images, folder, bar, resume=options.resume)
    print(f"done: {demo.program()} sample {folder}    {demo.program()} evaluate {folder}")


def run_sample(arguments: list[str]) -> None:
    """`unnoise sample RUN`."""
    from ..shared.figures import save_grid

    options = parse(Sample, arguments, "sample")
    checkpoint, experiment = opened(options.run)
    if options.out.suffix.lower() not in (".png", ".jpg", ".webp") or options.out.is_dir():
        raise UsageError(f"--out {options.out}: give the name of a picture, such as samples.png")
    writable(options.out.parent)
    like = ImageSet(torch.zeros(1, *checkpoint.shape), None, checkpoint.scale)
    steps = None if options.steps is None else positive("steps", options.steps)
    sampler = experiment.sampler(checkpoint.average.denoiser)
    run = draw(experiment, sampler, like, positive("count", options.count), steps, seed=options.seed, progress=bar)
    save_grid(options.out, run.levels.float() / (checkpoint.scale.levels - 1), columns=max(1, round(options.count**0.5)))
    print(f"{options.count} samples in {run.evaluations} network evaluations and {run.seconds:.1f} s: {options.out}")


def run_evaluate(arguments: list[str]) -> None:
    """`unnoise evaluate RUN`."""
    options = parse(Evaluate, arguments, "evaluate")
    checkpoint, experiment = opened(options.run)
    train, test = experiment.data.load("train", bar), experiment.data.load("test", bar)
    if options.count is not None:
        test = test._replace(
            k=test.k[: positive("count", options.count)], label=None if test.label is None else test.label[: options.count]
        )
    denoiser = checkpoint.average.denoiser
    bits, error = bits_per_dim(experiment, denoiser, test, seed=options.seed, progress=bar)
    results: dict[str, Any] = {"bits_per_dim": bits, "standard_error": error, "kind": experiment.codelength_kind, "step": checkpoint.step}
    steps = None if options.steps is None else positive("steps", options.steps)
    run = draw(experiment, experiment.sampler(denoiser), test, len(test.k), steps, seed=options.seed, progress=bar)
    if train.label is not None:
        judge = Judge(train, bar)
        results |= summary(judge.quality(run.levels), run) | {"frechet_of_held_out": judge.quality(test.k).frechet}
    path = writable(options.run) / "evaluation.json"
    path.write_text(json.dumps(results, indent=1))
    for key, value in results.items():
        print(f"{key:20} {value if not isinstance(value, float) else format(value, '.4f')}")
    print(f"written to {path}")


def opened(path: Path) -> tuple[Checkpoint, Experiment]:
    """A checkpoint that was written by a recipe."""
    checkpoint = load(path, device="cuda" if torch.cuda.is_available() else "cpu")
    if checkpoint.experiment is None or checkpoint.scale is None or checkpoint.shape is None:
        raise UsageError(f"the checkpoint in {path} was written without a recipe: load it in Python with unnoise.experiments.load")
    return checkpoint, checkpoint.experiment


def positive(name: str, value: int) -> int:
    """A number of at least one."""
    if value < 1:
        raise UsageError(f"{name}={value}: give a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
