"""The command line: the commands of `unnoise`, which `unnoise --help` lists."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from torch import Tensor

from ..shared.errors import UsageError, notices
from ..shared.progress import bar
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.training import Checkpoint, load
from ..shared.training.checkpoint import list_checkpoints
from ..shared.training.folder import naming, refuse_several, writable, write_text
from ..shared.training.trainer import Interrupted
from . import demo
from .command_options import Evaluate, Export, Import, Sample, Schedules, parse
from .evaluation import draw
from .experiment import Experiment
from .import_export import bring, send
from .recipes import RECIPES, SCRIPTS, find
from .reproduce import train_recipe
from .time_grids import spaced

USAGE = """usage: unnoise COMMAND ...

  demo                train a DDPM, a D3PM and a score SDE on digits and compare them (about 9 minutes on two cores)
  train RECIPE        train a recipe, such as ddpm-digits; every setting is an option
  sample RUN          draw samples of a trained run and write them as a picture or a text
  evaluate RUN        measure the code length and the sample quality of a trained run
  reproduce RECIPE    draw the figure and the table of a paper from a recipe, which is trained first where needed
  import FILE OUT     convert a pretrained checkpoint (a file, a folder or a name on the Hugging Face Hub) to a run
  export RUN OUT      convert a run or a pretrained checkpoint to a folder of the diffusers library
  plot-schedules      draw all noise schedules
  recipes             list the recipes

`unnoise COMMAND --help` describes the options of a command.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; bad input prints one line on stderr and returns 2, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with notices(lambda text: print(f"unnoise: {text}", file=sys.stderr)):
            return dispatch(arguments)
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, FloatingPointError, OSError) as error:
        print(f"unnoise: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except Interrupted as stop:
        again = shlex.join([demo.program(), *arguments, *([] if "--resume" in arguments else ["--resume"])])
        print(
            f"\nunnoise: stopped after step {stop.step} and saved in {stop.folder}; continue with: {again}",
            file=sys.stderr,
        )
        return 130
    except KeyboardInterrupt:
        print("\nunnoise: stopped", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Runs the command of that name.

    Raises:
        UsageError: for an unknown name; the message suggests the nearest one.
    """
    commands = {
        "demo": run_demo,
        "train": run_train,
        "sample": run_sample,
        "evaluate": run_evaluate,
        "reproduce": run_reproduce,
        "import": run_import,
        "export": run_export,
        "plot-schedules": run_plot_schedules,
        "recipes": run_recipes,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        if name in RECIPES or name in SCRIPTS:
            near = [f"unnoise train {name if name in RECIPES else f'{name}-smoke'}"]
        raise UsageError(
            f"there is no command {name}: "
            f"{f'did you mean {near[0]}?' if near else 'choose from ' + ', '.join(commands)}"
        )
    if name in ("demo", "train", "reproduce"):
        refuse_several()
    commands[name](rest)
    return 0


def run_demo(arguments: list[str]) -> None:
    """Runs `unnoise demo`."""
    demo.run(parse(demo.Demo, arguments, "demo"))


def run_recipes(arguments: list[str]) -> None:
    """Runs `unnoise recipes`."""
    if arguments and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"unnoise recipes takes no options: leave out {arguments[0]}")
    print(
        *(f"{name:34} {(preset.__doc__ or '').strip().splitlines()[0]}" for name, preset in RECIPES.items()), sep="\n"
    )
    print("\nTrain a recipe with `unnoise train NAME`; `unnoise train NAME --help` lists its settings.")


def run_train(arguments: list[str]) -> None:
    """Runs `unnoise train RECIPE`."""
    if (options := recipe_options("train", arguments)) is None:
        return
    experiment, name = options.experiment, arguments[0]
    with emptied(options.out) as folder:
        if options.resume and not list_checkpoints(folder / "checkpoints"):
            raise UsageError(
                f"there is nothing to resume in {folder}: leave out --resume, or give the folder of the run with --out"
            )
        data = experiment.load("train", bar)
        print(
            f"training {name} on {len(experiment.batches(data).k)} examples of {'x'.join(map(str, data.shape))} into "
            f"{folder}/"
        )
        print(f"data: {data.summary}")
        train_recipe(experiment, data, folder, bar, resume=options.resume)
    print(f"done: {demo.program()} sample {folder}    {demo.program()} evaluate {folder}")


def run_reproduce(arguments: list[str]) -> None:
    """Runs `unnoise reproduce RECIPE`."""
    if (options := recipe_options("reproduce", arguments)) is None:
        return
    with emptied(options.out) as folder:
        page = options.experiment.reproduce(folder, bar)
    print(f"{page.read_text()}\nwritten to {page}, with its pictures in the same folder")


OUT = "Folder for checkpoints, samples and results; it must not contain another run."
RESUME = "Whether training continues from the newest checkpoint in --out."


def recipe_options(command: str, arguments: list[str]) -> Any:
    """Returns a recipe with its settings, `out` and, for training, `resume`; None if help was requested."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: unnoise {command} RECIPE [options]\n\nRecipes:")
        run_recipes([])
        if not arguments:
            raise UsageError(f"give a recipe: unnoise {command} RECIPE, one of the names above")
        return None
    name, preset = arguments[0], find(arguments[0])
    fields: list[Any] = [
        ("experiment", Annotated[type(preset), tyro.conf.arg(name="")], field(default=preset)),
        ("out", Annotated[Path, tyro.conf.arg(help=OUT)], field(default=Path("runs") / name)),
    ]
    if command == "train":
        fields.append(("resume", Annotated[bool, tyro.conf.arg(help=RESUME)], field(default=False)))
    figure = (type(preset).reproduce.__doc__ or "").strip().splitlines()[0]
    does = {
        "train": f"Trains {name}: {{}}",
        "reproduce": f"Draws the figure of {name}: {figure} {{}} Parts that are already trained in --out are loaded, "
        "and interrupted training is continued.",
    }
    cls = make_dataclass("Options", fields)
    cls.__doc__ = does[command].format((type(preset).__doc__ or "").strip())
    return parse(cls, arguments[1:], f"{command} {name}")


def run_sample(arguments: list[str]) -> None:
    """Runs `unnoise sample RUN`."""
    options = parse(Sample, arguments, "sample")
    checkpoint, experiment = opened(options.run)
    path = output_path(options.out or Path(experiment.picture), Path(experiment.picture))
    count = positive("count", options.count)
    sampler = experiment.sampler(checkpoint.average.denoiser)
    steps = grid_of(experiment, sampler, options.steps)
    shape, quantization = data_of(checkpoint)
    run = draw(experiment, sampler, shape, quantization, count, steps, seed=options.seed, progress=bar)
    with naming(path):
        shown = experiment.show(path, run.levels, quantization, columns=max(1, round(count**0.5)))
    names = (checkpoint.description["batches"] or {}).get("names")
    by = f"{type(sampler).__name__}{of_classes(experiment, count, names)}"
    print(f"{shown}{count} samples in {run.evaluations} network evaluations and {run.seconds:.1f} s by {by}: {path}")


def run_evaluate(arguments: list[str]) -> None:
    """Runs `unnoise evaluate RUN`."""
    options = parse(Evaluate, arguments, "evaluate")
    checkpoint, experiment = opened(options.run)
    experiment = experiment if options.data is None else experiment.with_data(options.data)
    denoiser = checkpoint.average.denoiser
    count = None if options.count is None else positive("count", options.count)
    steps = grid_of(experiment, experiment.sampler(denoiser), options.steps)
    path = writable(options.run) / "evaluation.json"
    trained_on = checkpoint.description["batches"]
    results = experiment.evaluate(
        denoiser, count=count, steps=steps, seed=options.seed, trained_on=trained_on, progress=bar
    ) | {"step": checkpoint.step}
    for key, value in results.items():
        print(f"{key:20} {value if not isinstance(value, float) else format(value, '.4f')}")
    write_text(path, json.dumps(finite(results), indent=1, allow_nan=False))
    print(f"written to {path}")


def finite(value: Any) -> Any:
    """Returns results with None in place of NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_import(arguments: list[str]) -> None:
    """Runs `unnoise import FILE OUT`."""
    options = parse(Import, arguments, "import")
    report = bring(options.file, options.out, options.flags, options.data, options.tokenizer)
    for key, value in report.about.items():
        print(f"{key:12} {value}")
    for line in report.assumed:
        print(f"{'assumed':12} {line}")
    next_ = report.usage.format(unnoise=demo.program(), run=options.out, data="" if options.data else " --data NAME")
    print(f"written to {options.out}/; next: {next_}")


def run_export(arguments: list[str]) -> None:
    """Runs `unnoise export RUN OUT`."""
    options = parse(Export, arguments, "export")
    for line in send(options.run, options.out, options.flags):
        print(f"{'assumed':12} {line}")
    print(f'written to {options.out}/: diffusers.DDPMPipeline.from_pretrained("{options.out}") opens it')


def run_plot_schedules(arguments: list[str]) -> None:
    """Runs `unnoise plot-schedules`."""
    from .schedules import plot

    options = parse(Schedules, arguments, "plot-schedules")
    print(f"written to {plot(output_path(options.out, Schedules.out), options.steps)}")


def of_classes(experiment: Experiment, count: int, names: Sequence[str] | None = None) -> str:
    """Returns the classes of the samples in words, by name or number; an empty text for a model without labels."""
    label = experiment.conditions(torch.arange(min(count, 4))).get("label")
    if label is None:
        return ""
    first = [str(names[n] if names else n) for n in dict.fromkeys(label.tolist())]
    turn = " in turn" * (count > len(first) or len(first) > 3)
    return f" of the class{'es' * (len(first) > 1)} {', '.join(first[:3])}{', ...' * (len(first) > 3)}{turn}"


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


def output_path(path: Path, like: Path) -> Path:
    """Returns the path for samples.

    Raises:
        UsageError: for a file name with another ending than the experiment writes.
    """
    kinds = (".png", ".jpg", ".webp") if like.suffix == ".png" else (like.suffix,)
    if path.suffix.lower() not in kinds or path.is_dir():
        raise UsageError(f"--out {path}: give a name that ends in {' or '.join(kinds)}, such as {like}")
    writable(path.parent)
    return path


def grid_of(experiment: Experiment, sampler: Sampler, steps: str | None) -> int | Tensor:
    """Returns the requested sampling steps, or those of the recipe."""
    if steps is None:
        return experiment.grid(sampler.denoiser, experiment.sampling_steps)
    grid = spaced(steps, sampler.corruption)
    return positive("steps", grid) if isinstance(grid, int) else grid


def opened(path: Path) -> tuple[Checkpoint, Experiment]:
    """Returns a checkpoint and its experiment.

    Raises:
        UsageError: for a checkpoint without an experiment.
    """
    checkpoint = load(path, device="cuda" if torch.cuda.is_available() else "cpu")
    if checkpoint.experiment is None or checkpoint.quantization is None or checkpoint.shape is None:
        raise UsageError(f"the checkpoint in {path} has no recipe: load it in Python with unnoise.load")
    return checkpoint, checkpoint.experiment


def data_of(checkpoint: Checkpoint) -> tuple[tuple[int, ...], Quantization]:
    """Returns the shape and the quantization of the data of an opened checkpoint."""
    return cast("tuple[int, ...]", checkpoint.shape), cast(Quantization, checkpoint.quantization)


def positive(name: str, value: int) -> int:
    """Returns a number of at least one.

    Raises:
        UsageError: for a smaller number.
    """
    if value < 1:
        raise UsageError(f"{name}={value}: give a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
