"""The commands `unnoise sample` and `unnoise evaluate`."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from ...discrete import Infilling, Temperature, TopP, prefix, sliding
from ...discrete.denoiser import CleanDenoiser
from ...shared.data import tokenizer_file
from ...shared.denoiser import Denoiser
from ...shared.editing import Inpainting
from ...shared.errors import UsageError
from ...shared.progress import bar
from ...shared.quantization import Quantization
from ...shared.random import Streams, whole_seed
from ...shared.sampler import Sampler, device_of
from ...shared.serialization import deserialize
from ...shared.training import Checkpoint, load
from ...shared.training.checkpoint import newest, read
from ...shared.training.folder import writable, write_text
from ..evaluation import CHUNK, SamplingRun, draw
from ..pretrained.imported import run_of
from ..recipe import Recipe
from ..text_data import Text
from ..time_grids import spaced
from .outputs import path_for, write_samples
from .recipe_options import options_of, with_options, with_parts
from .training import Modules

OPTIONS = ("sampler", "spacing", "clip", "guidance", "variance")
"""The settings of a run that sampling can change."""


@dataclass(frozen=True)
class Sample:
    """Draws samples of a trained run and writes them into its folder.

    Images are written as one picture, a folder of PNGs or an .npz file, text as a text or .npz file; earlier samples
    are never overwritten. The samples depend on the seed, and not on how many are drawn at a time. `unnoise sample RUN
    --help` also lists the sampler's settings of that run.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    out: Path | None = None
    """File or folder to write the samples to; None for the folder of the run.
    A name ends in .png, .npz or .txt; without an ending it is a folder."""
    format: Literal["picture", "folder", "npz", "text"] | None = None
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
    caption: str | None = None
    """Caption of all samples, for a model with captions; None for no caption."""
    tokenizer: Path | None = None
    """Path of the tokenizer.json of the captions, where the run does not have it."""
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

    def __post_init__(self) -> None:
        whole_seed(self.seed)


@dataclass(frozen=True)
class Evaluate:
    """Measures the code length and the sample quality of a trained run on held-out data.

    Writes evaluation.json to the folder of the run. `unnoise evaluate RUN --help` also lists the sampler's settings.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm."""
    data: str | None = None
    """Data to evaluate on: a bundled set, a folder or a set on the Hugging Face Hub; None takes those of the run.
    Needed for an imported checkpoint, and for data that have moved since training."""
    count: int | None = None
    """Number of samples to draw and of held-out examples to code, such as 100; None takes all held-out examples."""
    steps: str | None = None
    """Sampling steps, written as for `unnoise sample`, such as 50; None takes the steps of the recipe."""
    seed: int = 0
    """Seed of the samples and of the times of the bound, a whole number."""
    module: Modules = ()

    def __post_init__(self) -> None:
        whole_seed(self.seed)


def options_for(command: str, run: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of a command with the sampler's settings of a run as options, and the arguments left for it."""
    checkpoint = load(Path(run), device="cuda" if torch.cuda.is_available() else "cpu", network=own_network(Path(run)))
    recipe = run_of(checkpoint)
    without = [f.name for f in fields(recipe) if f.name not in OPTIONS]
    recipe, rest = with_parts(recipe, arguments, without)

    def execute(options: Any) -> None:
        changed = with_options(recipe, options, without)
        changed.refuse_untrained_guidance()
        (sample if command == "sample" else evaluate)(options, checkpoint, changed)

    base = Sample if command == "sample" else Evaluate
    cls = make_dataclass(
        base.__name__, options_of(recipe, without), bases=(base,), namespace={"execute": execute}, frozen=True
    )
    cls.__doc__ = base.__doc__
    return cls, rest


def own_network(run: Path) -> torch.nn.Module | None:
    """Returns the network of a run whose class is not part of this package, built by its recipe; None for others.

    The class must have been imported, as by `--module`.
    """
    folder = newest(run)
    description, _ = read(folder)
    if '"external"' not in json.dumps(description["objective"]) or description["experiment"] is None:
        return None
    recipe, quantization = (deserialize(description[name]) for name in ("experiment", "quantization"))
    denoiser: Any = recipe.objective(tuple(description["shape"]), quantization).denoiser
    return denoiser.network


def evaluate(options: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Measures a run and writes evaluation.json."""
    recipe = recipe if options.data is None else recipe.with_data(options.data)
    denoiser = checkpoint.average.denoiser
    count = None if options.count is None else positive("count", options.count)
    steps = grid_of(recipe, recipe.sampler_of(denoiser), options.steps)
    path = writable(options.run) / "evaluation.json"
    trained_on = checkpoint.description["batches"]
    results = recipe.evaluate(
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


def sample(options: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Draws samples of a run and writes them."""
    (quantization, shape), count = data_of(checkpoint, options.run), positive("count", options.count)
    path = path_for(folder_of(options.run), recipe, options.out, options.format)
    denoiser = filtered(checkpoint.average.denoiser, options.temperature, options.top_p)
    sampler = recipe.sampler_of(denoiser)
    steps = grid_of(recipe, sampler, options.steps)
    names = (checkpoint.description["batches"] or {}).get("names")
    conditions = conditions_for(options, recipe, denoiser, names)
    text = text_for(options, recipe, shape)
    if text is not None and text.length > shape[0]:
        run = windows(text, sampler, recipe, shape, count, steps, options.seed)
    else:
        sampler = sampler if text is None else holding(text, sampler)
        shape = shape if text is None else (text.length,)
        run = draw(
            recipe, sampler, shape, quantization, count, steps, seed=options.seed, progress=bar, conditions=conditions
        )
    label = conditions(torch.arange(count)).get("label")
    shown = write_samples(path, recipe, run.levels, quantization, label)
    by = f"{type(sampler).__name__}{of_classes(label, names)}"
    print(f"{shown}{count} samples in {run.evaluations} network evaluations and {run.seconds:.1f} s by {by}: {path}")


def filtered(denoiser: Denoiser, temperature: float, top_p: float) -> Denoiser:
    """Returns a denoiser of tokens with temperature and top-p filtering; others unchanged.

    Raises:
        UsageError: for such a setting and a denoiser that does not predict p(x_0).
    """
    if temperature == 1 and top_p == 1:
        return denoiser
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"--temperature {temperature}, --top-p {top_p}: only models that predict the probabilities of tokens take "
            "these: leave them out"
        )
    denoiser = denoiser if temperature == 1 else Temperature(denoiser, temperature)
    return denoiser if top_p == 1 else TopP(denoiser, top_p)


Conditions = Callable[[Tensor], dict[str, Tensor]]
"""Returns the conditions, by name, of the samples whose numbers are given."""


def conditions_for(options: Any, recipe: Recipe, denoiser: Denoiser, names: Sequence[str] | None) -> Conditions:
    """Returns the conditions of the samples: the requested labels and caption, else those of the recipe."""
    given: dict[str, Tensor] = {}
    if options.labels is not None:
        if recipe.classes is None:
            raise UsageError("--labels: this model has no class labels: leave out --labels")
        given["label"] = torch.tensor([label_of(text, recipe.classes, names) for text in options.labels])
    if options.caption is not None:
        given["tokens"] = caption_tokens(options, denoiser)

    def of(rows: Tensor) -> dict[str, Tensor]:
        own = {name: value[rows.cpu() % len(value)].to(rows.device) for name, value in given.items()}
        return (recipe.conditions(rows) if "label" not in own else {}) | own

    return of


def label_of(text: str, classes: int, names: Sequence[str] | None) -> int:
    """Returns the number of a class, given its number or name.

    Raises:
        UsageError: for another class.
    """
    if text in (names or ()):
        return list(names or ()).index(text)
    if text.isdecimal() and int(text) < classes:
        return int(text)
    known = f", or one of {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else ""
    raise UsageError(f"--labels {text}: give numbers from 0 to {classes - 1}{known}")


def caption_tokens(options: Any, denoiser: Denoiser) -> Tensor:
    """Returns the tokens of the caption, `(1, L)`.

    Raises:
        UsageError: for a model without captions, or without a tokenizer.
    """
    if "tokens" not in (denoiser.conditions or ()):
        raise UsageError("--caption: this model has no captions: leave out --caption")
    if options.tokenizer is None:
        raise UsageError("--caption needs the tokenizer of the model's captions: give --tokenizer tokenizer.json")
    tokenizer = tokenizer_file(options.tokenizer)
    return torch.tensor([list(tokenizer.encode([options.caption])[0].ids)])


class GivenText(NamedTuple):
    """Tokens that are known, `(length,)`, and a mask that is True where they are."""

    known: Tensor
    mask: Tensor

    @property
    def length(self) -> int:
        """The number of tokens of the text."""
        return len(self.known)


def text_for(options: Any, recipe: Recipe, shape: tuple[int, ...]) -> GivenText | None:
    """Returns the known tokens of a prompt, of a text with gaps, or none in a text of another length.

    Raises:
        UsageError: for images, for a prompt and a text with gaps together, and for a text that is too long.
    """
    if options.prompt is None and options.infill is None and options.length is None:
        return None
    if not isinstance(recipe.data, Text):
        raise UsageError("--prompt, --infill and --length are for models of text: leave them out")
    if options.prompt is not None and options.infill is not None:
        raise UsageError("--prompt and --infill: give one of them, as a text with gaps can start with the prompt")
    length = shape[0] if options.length is None else positive("length", options.length)
    if options.infill is not None:
        pieces = [tokens_of(p, recipe.data) if p[0] != "_" else torch.full((len(p),), -1) for p in gaps(options.infill)]
        ids = torch.cat(pieces)
        if not bool((ids < 0).any()):
            raise UsageError(f"--infill {options.infill!r} has no gap: write an underscore for each unknown token")
        if len(ids) > length:
            raise UsageError(f"--infill has {len(ids)} tokens, and a text {length}: give a shorter text")
        ids = torch.cat([ids, torch.full((length - len(ids),), -1)])
        return GivenText(ids.clamp(min=0), ids >= 0)
    tokens = tokens_of(options.prompt or "", recipe.data)
    return (
        GivenText(*prefix(tokens, length))
        if len(tokens)
        else GivenText(torch.zeros(length).long(), torch.zeros(length).bool())
    )


def gaps(text: str) -> list[str]:
    """Returns the pieces of a text: runs of underscores, and what is between them."""
    return re.findall(r"_+|[^_]+", text)


def tokens_of(text: str, data: Text) -> Tensor:
    """Returns the tokens of a text, int64."""
    tokenizer = data.read_tokenizer()
    return torch.as_tensor(list(tokenizer.encode([text])[0].ids) if text else [], dtype=torch.int64)


def holding(text: GivenText, sampler: Sampler) -> Sampler:
    """Returns a sampler that keeps the known tokens."""
    return fill(sampler, text.known, text.mask) if bool(text.mask.any()) else sampler


def fill(sampler: Sampler, known: Tensor, mask: Tensor) -> Sampler:
    """Returns a sampler that keeps known tokens: clean where the process has a mask, else corrupted to each time."""
    corruption: Any = sampler.corruption
    return (Infilling if corruption.states > corruption.categories else Inpainting)(sampler, known, mask)


def windows(
    text: GivenText,
    sampler: Sampler,
    recipe: Recipe,
    shape: tuple[int, ...],
    count: int,
    steps: int | Tensor,
    seed: int,
) -> SamplingRun:
    """Samples texts longer than the network's window, window by window."""
    window, start = shape[0], time.perf_counter()
    known = int(text.mask.sum())
    if not bool(text.mask[:known].all()):
        raise UsageError(f"--length {text.length}: gaps are filled within {window} tokens, the length of the network")
    parts = []
    for rows in torch.arange(count).split(CHUNK):
        parts.append(
            sliding(
                sampler,
                text.length,
                window=window,
                overlap=window // 2,
                batch=len(rows),
                steps=steps,
                generator=Streams(seed, rows),
                progress=bar,
                prompt=text.known[:known].to(device_of(sampler.denoiser)) if known else None,
                fill=fill,
            ).cpu()
        )
    blocks = -(-(text.length - window) // (window - window // 2)) + 1
    number = steps if isinstance(steps, int) else len(steps) - 1
    return SamplingRun(torch.cat(parts), number, number * blocks, time.perf_counter() - start)


def of_classes(label: Tensor | None, names: Sequence[str] | None) -> str:
    """Returns the classes of the samples in words, by name or number; an empty text for a model without labels."""
    if label is None:
        return ""
    every = [str(names[n] if names else n) for n in dict.fromkeys(label.tolist())]
    turn = " in turn" * (len(label) > len(every) or len(every) > 3)
    return f" of the class{'es' * (len(every) > 1)} {', '.join(every[:3])}{', ...' * (len(every) > 3)}{turn}"


def grid_of(recipe: Recipe, sampler: Sampler, steps: str | None) -> int | Tensor:
    """Returns the requested sampling steps, or those of the recipe."""
    if steps is None:
        return recipe.grid(sampler.denoiser, recipe.sampling_steps)
    grid = spaced(steps, sampler.corruption)
    return recipe.grid(sampler.denoiser, positive("steps", grid)) if isinstance(grid, int) else grid


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
    return run.parent.parent if run.parent.name == "checkpoints" else run


def positive(name: str, value: int) -> int:
    """Returns a number of at least one.

    Raises:
        UsageError: for a smaller number.
    """
    if value < 1:
        raise UsageError(f"{name}={value}: give a whole number of at least 1")
    return value
