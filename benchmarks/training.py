"""The cost of a training step through `Trainer` beside a bare loop: `make bench-training`.

The bare loop trains the same objective (network, loss, times and noise) with the same optimizer, gradient clipping and
average, on examples that lie in memory in the form that the network takes. The two take turns step by step, A B A B,
in one process, so that other load on the machine affects both alike; a ratio is the median over the pairs of steps,
with its quartiles. One thread and its CPU time are used. The target is 1.03. Training from a mapped file is compared
with training from memory in the same way; the target of its throughput is 0.9.

`python -m benchmarks.training --smoke` runs everything once at the smallest sizes, as a test; its ratios mean nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Tensor

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments import report
from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import ddpm, mdlm
from unnoise.experiments.parts import part
from unnoise.experiments.recipe import Recipe
from unnoise.shared.data import Batches
from unnoise.shared.data.mapped import ImageWriter, mapped_rows
from unnoise.shared.networks import UNet
from unnoise.shared.objective import Objective
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

TARGET = 1.03
"""Largest ratio of the seconds of a step through `Trainer` to those of a bare loop."""
LEAST = 0.9
"""Smallest ratio of the throughput of training from a mapped file to that from memory."""
FILE_HEAD = ["step from memory, ms", "throughput, file / memory", "quartiles", "target", "met"]
LARGEST = 5000
"""Largest number of examples that the bare loop keeps in memory."""
HEAD = ["", "bare step, ms", "Trainer / bare", "quartiles", "target", "met"]


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    pairs: int = 100
    """Measured pairs of steps for each network."""
    threads: int = 1
    """Threads of PyTorch; with more than one, wall-clock time is measured in place of CPU time."""
    only: tuple[str, ...] = ()
    """What to measure: digits, mnist, shakespeare, or file for training from a file; none given for all."""
    smoke: bool = False
    """Run everything once at the smallest sizes and ignore the other options."""


def recipes(smoke: bool) -> dict[str, Recipe]:
    """Returns the recipes whose networks are measured, by name."""
    if smoke:
        return {"digits": ddpm.smoke(), "text": mdlm.smoke()}
    small = part(UNet, width=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), heads=4)
    return {
        "digits, 8 x 8, U-Net of 1.2 M parameters, batch 64": ddpm.digits(),
        "MNIST, 28 x 28, U-Net of 1.2 M parameters, batch 16": replace(
            ddpm.mnist(), network=small, data=Images("mnist5k", batch=16)
        ),
        "Shakespeare, length 128, DiT of 1.2 M parameters, batch 16": mdlm.shakespeare(),
    }


def bare_step(objective: Objective[Any], examples: Any, recipe: Recipe, config: Training) -> Callable[[], None]:
    """Returns a function that trains one step: draw a batch, loss, backward, clip, AdamW, average.

    It is written as a researcher would write it, with none of the functions of `Trainer`.
    """
    data, generator = cast(Batches, recipe.batches(examples)), torch.Generator().manual_seed(0)
    x0 = data.form(data.quantization, data.k[torch.arange(min(len(data.k), LARGEST))], generator)
    cond = data.conditions
    order = torch.randperm(len(x0), generator=generator)
    parameters: list[Tensor] = list(objective.parameters())
    average: list[Tensor] = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, config.learning_rate, config.betas, config.epsilon, config.weight_decay, fused=True
    )
    batch, position = recipe.data.batch, 0

    def work() -> None:
        nonlocal position
        start = position % (len(x0) // batch) * batch
        rows, position = order[start : start + batch], position + 1
        kept = {name: value[rows] for name, value in cond.items()}
        objective(x0[rows], generator=generator, **kept).total.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.005)  # pyright: ignore[reportPrivateImportUsage]

    return work


def pairs(recipe: Recipe, count: int, clock: Callable[[], float]) -> tuple[list[float], ...]:
    """Returns the seconds of steps through `Trainer`, and those of the bare steps between them."""
    examples = recipe.load("train")
    warm = min(10, max(count // 10, 1))
    config = replace(
        recipe.training, steps=count + warm + 1, save_every=10**9, watch_every=1, warmup=100, cooldown=0, device="cpu"
    )
    torch.manual_seed(0)
    bare = bare_step(recipe.objective(examples.shape, examples.quantization), examples, recipe, config)
    trained, plain, marks = list[float](), list[float](), list[float]()

    def watch(average: Objective[Any], step: int) -> None:
        stop = clock()
        if marks:  # a step lies between the end of this function and its next call
            trained.append(stop - marks.pop())
        start = clock()
        bare()
        plain.append(clock() - start)
        marks.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        objective = recipe.objective(examples.shape, examples.quantization)
        Trainer(objective, config, folder=Path(folder) / "run", watch=watch).fit(recipe.batches(examples))
    return trained[warm:], plain[warm:-1]


def row(name: str, trained: list[float], bare: list[float]) -> list[str]:
    """Returns a row of the table."""
    ratios = [a / b for a, b in zip(trained, bare, strict=True)]
    middle, (low, high) = statistics.median(ratios), quartiles(ratios)
    each = f"{1000 * statistics.median(bare):.2f}"
    met = "yes" if middle <= TARGET else "no"
    return [name, each, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{TARGET:.2f}", met]


def from_file(smoke: bool, count: int, clock: Callable[[], float]) -> list[str]:
    """Compares training from a mapped file with training from memory, step by step in turns, in one `Trainer`.

    Images are 3 x 32 x 32, in batches of 64 of 4,096. Returns a row of the table; its ratio is that of the throughputs.
    """
    number, batch = (16, 2) if smoke else (4096, 64)
    k = torch.randint(0, 256, (number, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    took, marks = list[float](), list[float]()
    torch.manual_seed(0)
    network = UNet((3, 32, 32), 8 if smoke else 16, (1, 2), 1, (), 1)
    objective = DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(1000))))
    config = Training(steps=2 * count + 5, watch_every=1, save_every=10**9, warmup=100, device="cpu")

    def watch(average: Objective[Any], step: int) -> None:
        took.extend([clock() - mark for mark in marks])
        marks[:] = [clock()]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.arrow"
        with ImageWriter(path, tuple(k.shape[1:])) as writer:
            for image in k:
                writer.add(image.numpy())
            writer.finish([])
        sources = [Batches(rows, batch, Quantization(256)) for rows in (k, mapped_rows(path))]
        Trainer(objective, config, watch=watch).fit(by_turns(sources))
    first = 4  # the turns of the first steps are left out
    memory, file = took[first + 1 :: 2], took[first::2]  # took[0] is step 2, and even steps read the file
    ratios = [b / a for a, b in zip(file, memory, strict=False)]
    middle, (low, high) = statistics.median(ratios), quartiles(ratios)
    return [f"{1000 * statistics.median(memory):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]


def by_turns(sources: list[Batches]) -> Iterator[dict[str, Tensor]]:
    """Yields a batch of each source in turn."""
    iterators = [iter(source) for source in sources]
    while True:
        for iterator in iterators:
            yield next(iterator)


def quartiles(values: list[float]) -> tuple[float, float]:
    """Returns the lower and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def main(settings: Settings) -> str:
    """Runs the benchmark and returns its tables, in Markdown."""
    before = torch.get_num_threads()
    threads, count = (1, 2) if settings.smoke else (settings.threads, settings.pairs)
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    try:
        chosen = [*recipes(settings.smoke), "file"] if not settings.only else settings.only
        rows = [
            row(name, *pairs(recipe, count, clock))
            for name, recipe in recipes(settings.smoke).items()
            if name in chosen or name.split(",")[0].lower() in chosen
        ]
        tables = [report.table(HEAD, rows)] if rows else []
        if "file" in chosen:
            cells = from_file(settings.smoke, count, clock)
            met = "yes" if float(cells[1]) >= LEAST else "no"
            tables.append(report.table(FILE_HEAD, [[*cells, f"{LEAST:.2f}", met]]))
    finally:
        torch.set_num_threads(before)
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
