"""The command `unnoise sample`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from unnoise import __version__

from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError, shown
from ...shared.metrics.features import digest_of
from ...shared.metrics.measurement import Origin
from ...shared.progress import Progress, bar
from ...shared.quantization import Quantization
from ...shared.serialization import deserialize
from ...shared.training import Checkpoint
from ...shared.training.checkpoint import first_intact, load_folder
from ...shared.training.posthoc import Wanted
from ..evaluation import CHUNK, Drawing, drawing
from ..parts import write
from ..recipe import Recipe
from ..sample_parts import Drawn, Parts, draw_parts
from ..sample_writing import write_samples
from ..time_grids import Sections, adaptive, quadratic, spaced, strided, trailing
from .arguments import UNNAMED, Modules
from .captions import of_samples
from .computing import Computing, computing, say_idle
from .conditions import conditions_for, filtered, holding, text_for, windows
from .outputs import path_for
from .recipe_options import options_of, with_options, with_parts
from .weights import Weighted, average_in, checkpoint_in

OPTIONS = ("sampler", "spacing", "clip", "guidance", "variance")
"""The settings of a run that sampling can change."""
GIVEN = ("count", "labels", "temperature", "top_p", "prompt", "infill", "length")
"""The options that samples depend on, beside those."""
CAPTION = (
    'Caption of the samples, such as "red heart", for a model with captions; several are taken in turn, each after '
    "--caption. Without one, the captions of held-out images are taken in turn; an empty one stands for no caption."
)
Captions = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help=CAPTION, metavar="TEXT")]


@dataclass(frozen=True)
class Sample:
    """Draws samples of a trained run and writes them into its folder.

    Images are written as one picture, a folder of PNGs or an .npz file, text as a text or .npz file, arrays as an
    .npz or .npy file; earlier samples are never overwritten. Sample i depends on the seed and on i, not on how many are
    drawn at a time. Each chunk is written as soon as it is drawn: a command that was stopped goes on when it is given
    again. `unnoise sample RUN --help` also lists the sampler's settings of that run. Several GPUs share the samples:
    `torchrun --nproc-per-node 8 -m unnoise sample RUN --count 50000`.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    out: Path | None = None
    """File or folder to write the samples to; None for the folder of the run.
    A name ends in .png, .npz or .txt; without an ending it is a folder."""
    format: Literal["picture", "folder", "npz", "npy", "text"] | None = None
    """Format of the samples; None for that of --out, or a picture for images and a text file for text."""
    count: int = 64
    """Number of samples."""
    steps: str | None = None
    """Sampling steps, such as 50; None takes those of the recipe.
    Models with a table of steps also take ddim50, quad50, trailing50, or numbers in sections, such as 90,60,60."""
    seed: int = 0
    """Seed of the samples, a whole number."""
    labels: tuple[str, ...] | None = None
    """Class labels of the samples in turn, numbers or names, such as 3 7; None for all classes in turn."""
    caption: Captions = ()
    captions: Path | None = None
    """Text file with captions of the samples in turn, one in each line."""
    tokenizer: Path | None = None
    """Path of the tokenizer.json of the captions, for a run that was trained in Python without it."""
    temperature: float = 1.0
    """Temperature of the tokens' probabilities, such as 0.9; 1 changes nothing."""
    top_p: float = 1.0
    """Share of the tokens' probability that is kept (nucleus sampling), such as 0.95; 1 keeps all."""
    prompt: str | None = None
    """Text that the samples start with."""
    infill: str | None = None
    """Text with gaps to fill, each unknown token an underscore, such as "to be or ____ to be"."""
    length: int | None = None
    """Number of tokens of a text; more than the length of the network are sampled window by window."""
    module: Modules = ()
    weights: Annotated[Weighted, UNNAMED] = field(default_factory=Weighted)
    computing: Annotated[Computing, UNNAMED] = field(default_factory=Computing)


def options_for(command: str, run: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command with the sampler's settings of a run, and the arguments left for it."""
    return options_of_run(Sample, sample, run, arguments)


def options_of_run(
    base: type, command: Callable[[Any, Checkpoint, Recipe], None], run: str, arguments: Sequence[str]
) -> tuple[type, list[str]]:
    """Returns a class of options with the sampler's settings of a run as options, and the arguments left for it."""
    checkpoint = load(Path(run), checkpoint_in(arguments), average_in(arguments))
    recipe = run_of(checkpoint)
    without = [f.name for f in fields(recipe) if f.name not in OPTIONS]
    recipe, rest = with_parts(recipe, arguments, without)

    def execute(options: Any) -> None:
        changed = with_options(recipe, options, without)
        changed.refuse_untrained_guidance()
        command(options, checkpoint, changed)

    given: Any = ("run", tyro.conf.Suppress[tyro.conf.Fixed[Path]], Path(run))
    options = [given, *options_of(recipe, without)]
    cls = make_dataclass(base.__name__, options, bases=(base,), namespace={"execute": execute}, frozen=True)
    cls.__doc__ = base.__doc__
    return cls, rest


def run_of(checkpoint: Checkpoint) -> Recipe:
    """Returns the recipe of a checkpoint; for one of a training in Python, a run made from its denoiser."""
    if checkpoint.experiment is not None:
        return checkpoint.experiment
    from ..pretrained import imported

    return imported.run_of(checkpoint)


def load(run: Path, which: str | None = None, average: Wanted = None, device: str = "cpu") -> Checkpoint:
    """Loads a checkpoint of a run, as `unnoise.load`, with a network of one's own as its recipe builds it."""
    return first_intact(run, lambda folder: load_folder(folder, own_network, device, average), which)[1]


def own_network(description: Mapping[str, Any]) -> torch.nn.Module | None:
    """Returns the network of a checkpoint whose class is not part of this package, built by its recipe, or None.

    The class must have been imported, as by `--module`.
    """
    if '"external"' not in json.dumps(description["objective"]) or description["experiment"] is None:
        return None
    recipe, quantization = (deserialize(description[name]) for name in ("experiment", "quantization"))
    denoiser: Any = recipe.objective(tuple(description["shape"]), quantization).denoiser
    return denoiser.network


def settings_used(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Returns the settings of sampling and measurement, parts in their notation."""
    names = [name for name in (*OPTIONS, "code_length", "sampling_steps") if hasattr(recipe, name)]
    return {n: v if isinstance(v := getattr(recipe, n), int) else write(v) for n in names} | {"seed": seed}


def sample(options: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Draws samples of a run and writes them."""
    (quantization, shape), count = data_of(checkpoint, options.run), positive("count", options.count)
    names = (checkpoint.description["batches"] or {}).get("names")
    weights = digest_of(checkpoint.average.denoiser.state_dict())
    with computing(options.computing, checkpoint.average.denoiser) as own:
        denoiser = filtered(own, options.temperature, options.top_p)
        recipe = with_steps(recipe, denoiser, options.steps)
        _, sampler = recipe.refuse_unfit(denoiser, quantization)
        steps = recipe.grid(denoiser, recipe.sampling_steps)
        conditions = conditions_for(options, recipe, denoiser, names)
        text = text_for(options, recipe, shape)
        captions = of_samples(options, recipe, count)
        settings = {"weights": weights} | settings_of(options, checkpoint, recipe, captions)

        def usable(path: Path) -> bool:
            return not Parts(path, count, quantization).differences(settings)

        path = path_for(folder_of(options.run), recipe, options.out, options.format, shape, usable)
        size = options.computing.batch or CHUNK
        say_idle(count, size)

        def drawing_with(progress: Progress) -> Drawing:
            if text is not None and text.length > shape[0]:
                return windows(text, sampler, shape[0], steps, options.seed, conditions, progress)
            return drawing(
                recipe,
                holding(text, sampler),
                shape if text is None else (text.length,),
                quantization,
                steps,
                seed=options.seed,
                progress=progress,
                conditions=conditions,
            )

        def finish(drawn: Drawn) -> None:
            label = None if recipe.classes is None else conditions(torch.arange(count)).get("label")
            about = about_samples(options, checkpoint, recipe, steps, drawn.evaluations)
            printed = write_samples(parts, recipe, about, label, captions)
            if options.weights.average is not None:
                print(f"weights: {checkpoint.description['weights']['average.*']}")
            by = f"{type(sampler).__name__}{of_classes(label, names)}{of_captions(captions)}"
            now = f", {drawn.new} of them now," * (drawn.new < count)
            spent = f"in {drawn.evaluations} network evaluations and {drawn.seconds:.1f} s"
            print(f"{printed}{count} samples{now} {spent} by {by}: {path}")

        parts = Parts(path, count, quantization)
        draw_parts(parts, settings, drawing_with, size, finish, bar)


def settings_of(options: Any, checkpoint: Checkpoint, recipe: Recipe, captions: Sequence[str] | None) -> dict[str, Any]:
    """Returns all settings that samples depend on, by name: parts that were drawn with others are not continued."""
    used = {name: value for name, value in settings_used(recipe, options.seed).items() if name != "code_length"}
    return {
        "checkpoint": checkpoint.step,
        "average": checkpoint.description["weights"]["average.*"],
        **{name: getattr(options, name) for name in GIVEN},
        "captions": None if captions is None else sha256("\n".join(captions).encode()).hexdigest()[:12],
        **used,
        "precision": options.computing.arithmetic,
        "version": __version__,
    }


def about_samples(
    options: Any, checkpoint: Checkpoint, recipe: Recipe, steps: int | Tensor, evaluations: int
) -> dict[str, Any]:
    """Returns what is written on samples: their origin, the run, and the settings that they were drawn with."""
    origin = Origin(
        sampler=write(recipe.sampler),
        steps=steps if isinstance(steps, int) else len(steps) - 1,
        evaluations=evaluations,
        weights=checkpoint.description["weights"]["average.*"],
        precision=options.computing.arithmetic,
        seed=options.seed,
        version=__version__,
    )
    quantization = checkpoint.quantization
    return {
        "origin": asdict(origin),
        "run": folder_of(options.run).resolve().name,
        "checkpoint": checkpoint.step,
        **{name: value for name in GIVEN if (value := getattr(options, name)) is not None},
        "settings": settings_used(recipe, options.seed),
        **({"quantization": asdict(quantization)} if isinstance(quantization, Quantization) else {}),
    }


def of_classes(label: Tensor | None, names: Sequence[str] | None) -> str:
    """Returns the classes of the samples in words, by name or number; an empty text for a model without labels."""
    if label is None:
        return ""
    every = [str(names[n] if names else n) for n in dict.fromkeys(label.tolist())]
    turn = " in turn" * (len(label) > len(every) or len(every) > 3)
    return f" of the class{'es' * (len(every) > 1)} {', '.join(every[:3])}{', ...' * (len(every) > 3)}{turn}"


def of_captions(captions: Sequence[str] | None) -> str:
    """Returns the captions of the samples in words; an empty text for a model without captions."""
    if captions is None:
        return ""
    every = [repr(shown(caption, 40)) for caption in dict.fromkeys(captions)]
    word = f"caption{'s' * (len(every) > 1)}"
    return f" of the {word} {', '.join(every[:3])}{', ...' * (len(every) > 3)}"


def with_steps(recipe: Recipe, denoiser: Denoiser, steps: str | None) -> Recipe:
    """Returns the recipe with the requested number of sampling steps, and the spacing that goes with it."""
    if steps is None:
        return recipe
    grid = spaced(steps, denoiser.corruption)
    if isinstance(grid, int):
        if getattr(recipe, "spacing", None) is adaptive:
            raise UsageError(f"--steps {steps}: an adaptive solver chooses its own steps: leave it out")
        return replace(recipe, sampling_steps=positive("steps", grid))
    name = steps.rstrip("0123456789")
    if named := {"ddim": strided, "quad": quadratic, "trailing": trailing}.get(name):
        return replace(recipe, sampling_steps=int(steps.removeprefix(name)), spacing=named)
    counts = tuple(int(part) for part in steps.split(","))
    return replace(recipe, sampling_steps=sum(counts), spacing=Sections(counts))


def data_of(checkpoint: Checkpoint, run: Path) -> tuple[Quantization, tuple[int, ...]]:
    """Returns the quantization and the shape of the data of a run.

    Raises:
        UsageError: for a checkpoint that does not have them.
    """
    if checkpoint.quantization is None or checkpoint.shape is None:
        raise UsageError(
            f"the checkpoint in {run} does not have the quantization and shape of its data: train with batches that "
            "have these attributes, such as image_dataset(...).batches(...)"
        )
    return checkpoint.quantization, checkpoint.shape


def folder_of(run: Path) -> Path:
    """Returns the folder of a run, given it or the folder of one of its checkpoints."""
    return run.parent.parent if run.parent.name == "checkpoints" and run.name.isdecimal() else run


def positive(name: str, value: int) -> int:
    """Returns a number of at least one.

    Raises:
        UsageError: for a smaller number.
    """
    if value < 1:
        raise UsageError(f"{name}={value}: give a whole number of at least 1")
    return value
