"""The command line.

`unnoise demo | train | sample | evaluate | reproduce | import | export | plot-schedules | recipes`.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ..shared.errors import UsageError, notices
from ..shared.progress import bar
from ..shared.random import whole_seed
from ..shared.sampler import Sampler
from ..shared.training import Checkpoint, load
from ..shared.training.checkpoint import numbered
from ..shared.training.folder import naming, refuse_several, writable, write_text
from ..shared.training.trainer import Interrupted
from . import demo
from .evaluation import draw
from .experiment import Experiment
from .import_export import Flags, bring, send
from .recipes import RECIPES, SCRIPTS, find
from .reproduce import train_recipe
from .time_grids import spaced

USAGE = """usage: unnoise COMMAND ...

  demo                train a DDPM, a D3PM and a score SDE on digits and compare them (about 9 minutes on two cores)
  train RECIPE        train one recipe, such as ddpm-digits; every setting is an option
  sample RUN          draw samples from a trained run into a picture
  evaluate RUN        code length and quality of samples of a trained run
  reproduce RECIPE    train a recipe if need be, and draw its paper's figure and table from it
  import FILE OUT     read a released checkpoint, a file, a folder or a name on the Hub, into a run
  export RUN OUT      write a run, or a released checkpoint, as a folder of the diffusers library
  plot-schedules      draw every noise schedule
  recipes             list the recipes

Each command explains its options with --help.
"""


@dataclass(frozen=True)
class Sample:
    """Draws samples from a trained run and writes them as one picture, or one text.

    They depend on the seed alone, not on the batch.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    out: Path | None = None
    """What to write; None for samples.png of images, and samples.txt of text."""
    count: int = 64
    """How many."""
    steps: str | None = None
    """Steps of the sampler: a number, or on tables ddim50, quad50, trailing50, or counts for sections such as
    90,60,60,20,20; None for the recipe's own."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        whole_seed(self.seed)


@dataclass(frozen=True)
class Schedules:
    """Draws every noise schedule: alpha-bar, log-SNR and beta over time."""

    out: Path = Path("schedules.png")
    """The picture."""
    steps: int = 1000
    """Steps of the tables."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained run on the held-out part of its data and writes evaluation.json beside its checkpoints."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: str | None = None
    """A bundled set, a folder or a set on the hub to measure an imported checkpoint on.

    Or where the data of a run lie now.
    """
    count: int | None = None
    """Samples to draw and held-out examples to code; None for as many as are held out."""
    steps: str | None = None
    """Steps of the sampler, as `unnoise sample` takes them; None for the recipe's own."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        whole_seed(self.seed)


@dataclass(frozen=True)
class Import:
    """Reads a released checkpoint and writes it in this package's own format; it is sampled and measured then without
    any flags.

    Files of DDPM, improved-diffusion, guided-diffusion, score_sde, NCSNv2, EDM, MDLM and SEDD are known by their
    content, and folders of diffusers. Flags are needed where neither a file nor a released name says how its network
    was built and trained; an error names those that are missing, and what is assumed is printed. Nothing in a file is
    run.
    """

    file: tyro.conf.Positional[str]
    """A file, a folder, or a name on the Hub such as google/ddpm-cifar10-32 or owner/name/folder/file.pth."""
    out: tyro.conf.Positional[Path]
    """Folder of the new run."""
    data: str | None = None
    """What `unnoise evaluate` measures it on: a bundled set, a folder or a set on the hub."""
    tokenizer: Path | None = None
    """For text: the tokenizer.json of its tokens. Without it samples are token ids."""
    flags: Annotated[Flags, tyro.conf.arg(name="")] = field(default_factory=Flags)


@dataclass(frozen=True)
class Export:
    """Writes a run's averaged weights, or a released checkpoint, as a folder that
    `diffusers.DDPMPipeline.from_pretrained` opens.
    """

    run: tyro.conf.Positional[str]
    """Folder of the run, or whatever `unnoise import` takes."""
    out: tyro.conf.Positional[Path]
    """The new folder."""
    flags: Annotated[Flags, tyro.conf.arg(name="")] = field(default_factory=Flags)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Bad input gives one line on stderr and exit status 2, never a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with notices(lambda said: print(f"unnoise: {said}", file=sys.stderr)):
            return dispatch(arguments)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, FloatingPointError, OSError) as error:
        print(f"unnoise: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except Interrupted as stop:
        again = shlex.join([demo.program(), *arguments, *([] if "--resume" in arguments else ["--resume"])])
        print(
            f"\nunnoise: stopped after step {stop.step} and saved in {stop.folder}; go on with: {again}",
            file=sys.stderr,
        )
        return 130
    except KeyboardInterrupt:
        print("\nunnoise: stopped", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Finds the command."""
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
            f"there is no command {name}: {f'did you mean {near[0]}?' if near else 'choose from ' + ', '.join(commands)}"
        )
    if name in ("demo", "train", "reproduce"):
        refuse_several()
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
    for line in re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", box).splitlines():
        text = line.strip("│ \t")
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if said and said[-1].startswith("Perhaps you meant"):
            said[-1] = f"({said[-1].lower()} {text.split()[0]})"
            break
        if text and text[0] not in "╭╰─-":
            said.append(text)
    text = " ".join(said) or "the options cannot be read"
    if wrong := re.search(r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*?)\]", text):
        takes = re.sub(r"[{}]", "", wrong[2]).replace("|", " or ").replace("INT INT", "two whole numbers such as 8 8")
        text = f"{wrong[1]} takes {takes.replace('INT', 'a whole number')}, not {wrong[3]}"
    return text


def run_demo(arguments: list[str]) -> None:
    """`unnoise demo`."""
    demo.run(parse(demo.Demo, arguments, "demo"))


def run_recipes(arguments: list[str]) -> None:
    """`unnoise recipes`."""
    if arguments and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"unnoise recipes takes no options, not {arguments[0]}")
    print(
        *(f"{name:34} {(preset.__doc__ or '').strip().splitlines()[0]}" for name, preset in RECIPES.items()), sep="\n"
    )
    print("\nTrain one with `unnoise train NAME`; `unnoise train NAME --help` shows every setting.")


def run_train(arguments: list[str]) -> None:
    """`unnoise train RECIPE`."""
    if (options := recipe_options("train", arguments)) is None:
        return
    experiment, name = options.experiment, arguments[0]
    with emptied(options.out) as folder:
        if options.resume and not numbered(folder / "checkpoints"):
            raise UsageError(
                f"there is nothing to resume in {folder}: leave --resume out, or give the run's folder as --out"
            )
        data = experiment.load("train", bar)
        print(
            f"training {name} on {len(experiment.batches(data).k)} examples of {'x'.join(map(str, data.shape))} into {folder}/"
        )
        print(f"data: {data.summary}")
        train_recipe(experiment, data, folder, bar, resume=options.resume)
    print(f"done: {demo.program()} sample {folder}    {demo.program()} evaluate {folder}")


def run_reproduce(arguments: list[str]) -> None:
    """`unnoise reproduce RECIPE`."""
    if (options := recipe_options("reproduce", arguments)) is None:
        return
    with emptied(options.out) as folder:
        page = options.experiment.reproduce(folder, bar)
    print(f"{page.read_text()}\nwritten to {page}, with its pictures beside it")


def recipe_options(command: str, arguments: list[str]) -> Any:
    """A recipe with its settings, `out` and, for training, `resume`; None after help was asked for."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: unnoise {command} RECIPE [options]\n\nRecipes:")
        run_recipes([])
        if not arguments:
            raise UsageError("which recipe? Give one of the names above")
        return None
    name, preset = arguments[0], find(arguments[0])
    fields: list[Any] = [
        ("experiment", Annotated[type(preset), tyro.conf.arg(name="")], field(default=preset)),
        ("out", Path, field(default=Path("runs") / name)),
    ]
    does = {
        "train": f"Trains {name}: {{}} With --resume it goes on from the newest checkpoint in --out.",
        "reproduce": f"The figure of {name}: {(type(preset).reproduce.__doc__ or '').strip().splitlines()[0]} {{}} What is trained "
        "already in --out is taken as it is, and what broke off goes on.",
    }
    cls = make_dataclass("Options", fields + ([("resume", bool, field(default=False))] if command == "train" else []))
    cls.__doc__ = does[command].format((type(preset).__doc__ or "").strip())
    return parse(cls, arguments[1:], f"{command} {name}")


def run_sample(arguments: list[str]) -> None:
    """`unnoise sample RUN`."""
    options = parse(Sample, arguments, "sample")
    checkpoint, experiment = opened(options.run)
    path, count = (
        output_path(options.out or Path(experiment.picture), Path(experiment.picture)),
        positive("count", options.count),
    )
    sampler = experiment.sampler(checkpoint.average.denoiser)
    steps = grid_of(experiment, sampler, options.steps)
    run = draw(
        experiment, sampler, checkpoint.shape, checkpoint.quantization, count, steps, seed=options.seed, progress=bar
    )
    with naming(path):
        said = experiment.show(path, run.levels, checkpoint.quantization, columns=max(1, round(count**0.5)))
    names = (checkpoint.description["batches"] or {}).get("names")
    by = f"{type(sampler).__name__}{asked(experiment, count, names)}"
    print(f"{said}{count} samples in {run.evaluations} network evaluations and {run.seconds:.1f} s by {by}: {path}")


def run_evaluate(arguments: list[str]) -> None:
    """`unnoise evaluate RUN`."""
    options = parse(Evaluate, arguments, "evaluate")
    checkpoint, experiment = opened(options.run)
    experiment = experiment if options.data is None else experiment.on(options.data)
    denoiser = checkpoint.average.denoiser
    count = None if options.count is None else positive("count", options.count)
    steps = grid_of(experiment, experiment.sampler(denoiser), options.steps)
    path = writable(options.run) / "evaluation.json"
    asked = {"count": count, "steps": steps, "seed": options.seed, "trained_on": checkpoint.description["batches"]}
    results = experiment.evaluate(denoiser, **asked, progress=bar) | {"step": checkpoint.step}
    for key, value in results.items():
        print(f"{key:20} {value if not isinstance(value, float) else format(value, '.4f')}")
    write_text(path, json.dumps(finite(results), indent=1, allow_nan=False))
    print(f"written to {path}")


def finite(value: Any) -> Any:
    """Results as JSON has them: null for NaN and infinity, which it does not know."""
    if isinstance(value, dict):
        return {name: finite(held) for name, held in value.items()}
    if isinstance(value, list):
        return [finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_import(arguments: list[str]) -> None:
    """`unnoise import FILE OUT`."""
    options = parse(Import, arguments, "import")
    brought = bring(options.file, options.out, options.flags, options.data, options.tokenizer)
    for key, value in brought.about.items():
        print(f"{key:12} {value}")
    for line in brought.assumed:
        print(f"{'assumed':12} {line}")
    next_ = brought.usage.format(unnoise=demo.program(), run=options.out, data="" if options.data else " --data NAME")
    print(f"written to {options.out}/; next: {next_}")


def run_export(arguments: list[str]) -> None:
    """`unnoise export RUN OUT`."""
    options = parse(Export, arguments, "export")
    for line in send(options.run, options.out, options.flags):
        print(f"{'assumed':12} {line}")
    print(f'written to {options.out}/: diffusers.DDPMPipeline.from_pretrained("{options.out}") opens it')


def run_plot_schedules(arguments: list[str]) -> None:
    """`unnoise plot-schedules`."""
    from .schedules import plot

    options = parse(Schedules, arguments, "plot-schedules")
    print(f"written to {plot(output_path(options.out, Schedules.out), options.steps)}")


def asked(experiment: Experiment, count: int, names: Sequence[str] | None = None) -> str:
    """Which classes samples were asked for, by their names if they have some; nothing without classes."""
    label = experiment.conditions(torch.arange(min(count, 4))).get("label")
    if label is None:
        return ""
    first = [str(names[n] if names else n) for n in dict.fromkeys(label.tolist())]
    turn = " in turn" * (count > len(first) or len(first) > 3)
    return f" of the class{'es' * (len(first) > 1)} {', '.join(first[:3])}{', ...' * (len(first) > 3)}{turn}"


@contextlib.contextmanager
def emptied(path: Path) -> Iterator[Path]:
    """A folder to write to.

    It goes away again, with the parents that were made for it, where an error leaves it empty.
    """
    new = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield writable(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in new:
                folder.rmdir()
        raise


def output_path(path: Path, like: Path) -> Path:
    """A path to write samples to, of the kind that the experiment writes."""
    kinds = (".png", ".jpg", ".webp") if like.suffix == ".png" else (like.suffix,)
    if path.suffix.lower() not in kinds or path.is_dir():
        raise UsageError(f"--out {path}: give a name that ends in {' or '.join(kinds)}, such as {like}")
    writable(path.parent)
    return path


def grid_of(experiment: Experiment, sampler: Sampler, steps: str | None) -> int | Tensor:
    """The sampling steps that were asked for, or the recipe's own."""
    if steps is None:
        return experiment.grid(sampler.denoiser, experiment.sampling_steps)
    grid = spaced(steps, sampler.corruption)
    return positive("steps", grid) if isinstance(grid, int) else grid


def opened(path: Path) -> tuple[Checkpoint, Experiment]:
    """A checkpoint that was written by a recipe."""
    checkpoint = load(path, device="cuda" if torch.cuda.is_available() else "cpu")
    if checkpoint.experiment is None or checkpoint.quantization is None or checkpoint.shape is None:
        raise UsageError(
            f"the checkpoint in {path} was written without a recipe: load it in Python with unnoise.experiments.load"
        )
    return checkpoint, checkpoint.experiment


def positive(name: str, value: int) -> int:
    """A number of at least one."""
    if value < 1:
        raise UsageError(f"{name}={value}: give a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
