"""Time of the papers' U-Nets, as ratios to other libraries' networks and to each other: `make bench-networks`.

Contenders take turns, A B C, B C A, ..., and a ratio is the median over the rounds of the ratio within a round, with
its quartiles, so that other load on the machine affects all contenders alike. One thread and its CPU time are used,
unless `--threads` is larger. `python -m benchmarks.networks --smoke` runs everything once at the smallest sizes, as a
test; its ratios mean nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import tyro

from unnoise.experiments import report
from unnoise.experiments.gaussian import GaussianRecipe
from unnoise.experiments.papers import ddpm
from unnoise.experiments.pretrained import diffusers as importer
from unnoise.experiments.pretrained.weights import fill
from unnoise.shared.networks import UNet
from unnoise.shared.networks.unet_variants import DDPM, DDPMPP, NCSNPP, PLAIN
from unnoise.shared.progress import Progress, bar, silent
from unnoise.shared.training import Trainer
from unnoise.shared.training.precision import native_bfloat16

from .contenders import Settings, batch, channels_last, ours, parameters, peers, work_of

Rows = list[list[str]]

HEAD = ["", "", "ratio", "quartiles", "target", "met"]


def turns(
    works: dict[str, Callable[[], None]], settings: Settings, label: str, progress: Progress
) -> dict[str, list[float]]:
    """Returns the seconds of each function in each round, after a round to warm up."""
    clock = time.process_time if settings.threads == 1 and not torch.cuda.is_available() else time.perf_counter
    names, found = list(works), {name: list[float]() for name in works}
    for turn in progress(range(settings.rounds + 1), settings.rounds + 1, label):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # each is the first in turn
            start = clock()
            works[name]()
            if turn:
                found[name].append(clock() - start)
    return found


def ratio(times: dict[str, list[float]], name: str, base: str, scale: float = 1.0) -> list[float]:
    """Returns the ratio of two contenders' seconds in each round, times `scale`."""
    return [scale * a / b for a, b in zip(times[name], times[base], strict=True)]


def row(what: str, who: str, ratios: list[float], target: float | None = None) -> list[str]:
    """Returns a row of the table."""
    middle = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (middle,) * 3
    met = "" if target is None else ("yes" if middle <= target else "no")
    return [what, who, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", "" if target is None else f"{target:.2f}", met]


def beside_peers(settings: Settings, progress: Progress) -> tuple[Rows, list[str]]:
    """Compares this package's networks with other libraries', in float32 and in the trainer's automatic precision.

    Returns:
        Rows of the table, and notes.
    """
    found, notes = peers(settings)
    plain, paper = ours("UNet, PLAIN", PLAIN, settings), ours("UNet, DDPM", DDPM, settings)
    x, t = batch(settings.batch, settings.size)
    if "diffusers" in found:
        state, network = found["diffusers"].network.state_dict(), cast("UNet", paper.network)
        fill(network, importer.names(network), state, "UNet2DModel")  # so that both compute the same numbers
        with torch.no_grad():
            apart = float((paper.call(x[:2], t[:2]) - found["diffusers"].call(x[:2], t[:2])).abs().max())
        notes.append(f"with the weights of diffusers' network, the outputs of ours differ by {apart:.0e} at most")
    everyone = [*found.values(), paper, plain]
    flops = {c.name: c.flops(x, t) for c in everyone}
    notes += [
        f"{c.name}: {parameters(c):,} parameters, {flops[c.name] / 1e9:.2f} GFLOP for {settings.batch} images"
        for c in everyone
    ]
    half = native_bfloat16(torch.device("cpu"))
    if not half:
        notes.append("bfloat16 is left out: this CPU does not compute in it, and the trainer's precision is float32")
    rows = []
    for what in ("forward", "training step"):
        works = {c.name: work_of(c, what, x, t) for c in everyone}
        for c in (paper, plain) if half else ():
            works[f"{c.name}, bfloat16"] = work_of(c, what, x, t, torch.bfloat16)
        if half and "diffusers" in found:
            works["diffusers UNet2DModel, bfloat16"] = work_of(found["diffusers"], what, x, t, torch.bfloat16)
        times = turns(works, settings, what, progress)
        for base in found.values():
            same = flops[base.name] == flops[paper.name]
            for c in (paper, plain):
                per = flops[base.name] / flops[c.name]
                unit = "" if same and c is paper else " for each operation"
                rows.append(row(what, f"{c.name} / {base.name}{unit}", ratio(times, c.name, base.name, per), 1.0))
            for name in times if base is found.get("diffusers") else ():
                if name.endswith("bfloat16"):
                    target = 0.55 if name.startswith("UNet") else None
                    rows.append(row(what, f"{name} / {base.name}, float32", ratio(times, name, base.name), target))
    for dtype in (torch.float32, torch.bfloat16) if half else (torch.float32,):
        for what in ("forward", "training step"):
            first, last = ours("channels first", DDPM, settings), ours("channels last", DDPM, settings)
            channels_last(last.network)
            works = {
                first.name: work_of(first, what, x, t, dtype),
                last.name: work_of(last, what, x.to(memory_format=torch.channels_last), t, dtype),
            }
            kind = str(dtype).split(".")[-1]
            times = turns(works, settings, f"{what}, channels last, {kind}", progress)
            ratios = ratio(times, last.name, first.name)
            rows.append(row(what, f"UNet, DDPM, {kind}: {last.name} / {first.name}", ratios))
    return rows, notes


def filters(settings: Settings, progress: Progress) -> Rows:
    """Compares NCSN++, with FIR filters and a residual progressive input, with DDPM++ of the same size."""
    first, second = ours("NCSN++", NCSNPP, settings), ours("DDPM++", DDPMPP, settings)
    x, t = batch(max(settings.batch // 2, 1), settings.size)
    rows = []
    for what in ("forward", "training step"):
        times = turns({c.name: work_of(c, what, x, t) for c in (first, second)}, settings, f"{what}, NCSN++", progress)
        rows.append(row(what, "NCSN++ / DDPM++", ratio(times, "NCSN++", "DDPM++"), 1.3))
    return rows


def digits(settings: Settings, progress: Progress, recipe: GaussianRecipe, draws: int = 20) -> Rows:
    """Trains the digits recipe in both precisions and compares the held-out losses of the averaged networks.

    Seed and number of steps are the same.
    """
    losses = []
    images, test = recipe.data.load("train"), recipe.data.load("test")
    cooldown = settings.digits_steps // 3
    for precision in ("float32", "auto"):  # auto is the trainer's automatic precision
        training = replace(
            recipe.training, steps=settings.digits_steps, cooldown=cooldown, precision=precision, device="cpu"
        )
        torch.manual_seed(training.seed)
        objective = recipe.objective(images.shape, images.quantization)
        average = Trainer(objective, training, progress=progress).fit(recipe.batches(images))
        generator = torch.Generator().manual_seed(1)
        x0, cond = images.quantization.continuous(test.k), {"label": test.label}
        with torch.no_grad():
            losses.append(
                float(torch.stack([average(x0, generator=generator, **cond).total.mean() for _ in range(draws)]).mean())
            )
    apart = abs(losses[1] / losses[0] - 1)
    who = (
        f"digits, {settings.digits_steps} steps: {losses[1]:.5f} in bfloat16, {losses[0]:.5f} in float32, "
        "relative difference"
    )
    return [["held-out loss", who, f"{apart:.4f}", "", "0.02", "yes" if apart <= 0.02 else "no"]]


def cpu_field(field: str) -> str:
    """Returns the value of a field of /proc/cpuinfo, or "" where it is missing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def cpu() -> str:
    """Returns the name of the processor."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def version(package: str) -> str:
    """Returns the version of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def run(settings: Settings, progress: Progress) -> str:
    """Runs the benchmark and returns its report, as Markdown."""
    if settings.smoke:
        return written(SMOKE, *smoke())
    torch.set_num_threads(settings.threads)
    rows, notes = beside_peers(settings, progress)
    rows += filters(settings, progress)
    if settings.digits:
        rows += digits(settings, progress, ddpm.digits())
    notes.append("the compiled bfloat16 training step on a GPU: benchmarks/gpu.sh")
    return written(settings, rows, notes)


def written(settings: Settings, rows: Rows, notes: list[str]) -> str:
    """Returns the report: the machine and versions, the table and the notes."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "denoising-diffusion-pytorch"))
    head = f"{cpu()}, {torch.get_num_threads()} threads, {packages}, {settings.rounds} rounds"
    return "\n\n".join([head, report.table(HEAD, rows), "\n".join(f"- {note}" for note in notes)])


SMOKE = Settings(rounds=1, batch=1, size=8, width=32, multipliers=(1, 1), blocks=1, digits_steps=2)


def smoke() -> tuple[Rows, list[str]]:
    """Runs every part with small networks, in seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, notes = beside_peers(SMOKE, silent)
        rows += filters(SMOKE, silent)
        rows += digits(SMOKE, silent, ddpm.smoke(), draws=1)
    finally:
        torch.set_num_threads(before)
    return rows, notes


if __name__ == "__main__":
    print(run(tyro.cli(Settings), bar))
