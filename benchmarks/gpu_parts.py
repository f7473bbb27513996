"""What `benchmarks.gpu` measures: functions that write a section of its page row by row."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.continuous import DDIM, DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments import report
from unnoise.experiments.cli import main as unnoise
from unnoise.experiments.papers import d3pm_text, mdlm, sedd
from unnoise.experiments.parts import part
from unnoise.shared.cuda_graphs import Recorder, with_cuda_graphs
from unnoise.shared.data import Batches
from unnoise.shared.networks import DiT
from unnoise.shared.networks.unet_variants import DDPM
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.throughput import peak_of

from . import contenders, networks


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    device: str = "cuda"
    images: contenders.Settings = field(default_factory=lambda: contenders.Settings(rounds=9, batch=128, width=128))
    """Network and batch of the images; the default is DDPM's network for CIFAR-10, 35.7 M parameters."""
    steps: int = 10
    """Steps of a turn."""
    compile: bool = True
    """Whether networks are also compiled."""
    sampled: tuple[int, ...] = (1, 16, 256)
    """Batches of samples."""
    tokens: tuple[int, int, int] = (8, 1024, 50257)
    """Batch, length and vocabulary of the categorical losses."""
    text: tuple[int, int, int] = (768, 12, 12)
    """Width, depth and heads of the network of text."""
    trained: tuple[str, ...] = ("--training.precision", "auto")
    """Further options of `unnoise train` for the digits and Fashion-MNIST."""
    digits: str = "ddpm-digits"
    """Recipe of the digits."""
    pictures: tuple[str, ...] = ("--training.steps", "2000", "--training.cooldown", "700", "--sampling-steps", "100")
    """Further options of `unnoise train ddpm-mnist` for Fashion-MNIST; the network of the digits for none."""
    measured: int | None = 1000
    """Held-out examples that are coded, and samples."""
    fashion: Path | None = None
    """Folder with train.parquet and test.parquet of Fashion-MNIST; None leaves it out."""


REHEARSAL = Sizes(
    device="cpu",
    images=contenders.Settings(rounds=1, batch=2, size=8, width=32, multipliers=(1, 1), blocks=1),
    steps=1,
    compile=False,
    sampled=(1, 2),
    tokens=(2, 8, 50),
    text=(16, 1, 2),
    trained=("--training.device", "cpu"),
    digits="ddpm-smoke",
    pictures=(),
    measured=8,
)
"""The smallest sizes, on the CPU: they show that everything runs, and measure nothing."""


class Section:
    """A section of the page, a file that is written again after each row.

    Args:
        path: the file.
        title: its heading.
        head: the heading of the columns.
        about: what the figures mean, in a paragraph.
    """

    def __init__(self, path: Path, title: str, head: list[str], about: str = "") -> None:
        self.path, self.title, self.head, self.about = path, title, head, about
        self.rows, self.notes = list[list[str]](), list[str]()

    def add(self, *cells: str) -> None:
        """Adds a row."""
        self.rows.append(list(cells))
        self.write()

    def note(self, text: str) -> None:
        """Adds a line below the table."""
        self.notes.append(text)
        self.write()

    def write(self) -> None:
        """Writes the section."""
        table = report.table(self.head, self.rows) if self.rows else ""
        parts = (f"## {self.title}", self.about, table, "\n".join(f"- {note}" for note in self.notes))
        self.path.write_text("\n\n".join(text for text in parts if text) + "\n")


def waited(device: torch.device) -> None:
    """Waits for a device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeated(work: Callable[[], object], device: torch.device, times: int) -> Callable[[], None]:
    """Returns a function that calls `work` a number of times and waits for the device to finish."""

    def whole() -> None:
        for _ in range(times):
            work()
        waited(device)

    return whole


def training(path: Path, sizes: Sizes) -> None:
    """Measures training steps of the U-Net beside those of diffusers, and through `Trainer`."""
    about = (
        f"Batch {sizes.images.batch} of 3 x {sizes.images.size} x {sizes.images.size}, bfloat16, channels last. A step "
        "is forward, backward and Adam; through `Trainer` also times, noise, clipping and the average. The networks "
        "take turns; a ratio is the median over the turns of the ratio of seconds within a turn, with its quartiles."
    )
    head = ["network", "compiled", "images/s", "TFLOP/s", "utilization", "seconds, ratio to diffusers", "quartiles"]
    section = Section(path, "Training of the CIFAR-10 U-Net", head, about)
    device = torch.device(sizes.device)
    x, t = (v.to(device) for v in contenders.batch(sizes.images.batch, sizes.images.size))
    x = x.to(memory_format=torch.channels_last)
    operations = 0.0
    for compiled in (False, True) if sizes.compile else (False,):
        found = [contenders.ours("UNet, DDPM", DDPM, sizes.images, 0.1)]
        try:
            found.append(contenders.diffusers_unet(sizes.images, 0.1))
        except Exception as error:  # a library that does not fit the installed torch may raise anything
            section.note(f"diffusers is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
        works = {}
        for c in found:
            contenders.channels_last(c.network.to(device))
            if not operations:
                operations = contenders.counted(c.training(x, t, torch.bfloat16))
                section.note(
                    f"{c.name}: {contenders.parameters(c):,} parameters, {operations / 1e9:.2f} GFLOP for a step"
                )
            call = cast("contenders.Call", torch.compile(c.call)) if compiled else c.call
            works[c.name] = repeated(replace(c, call=call).training(x, t, torch.bfloat16), device, sizes.steps)
        times = networks.turns(works, sizes.images, "training step", silent)
        for c in found:
            each = statistics.median(times[c.name]) / sizes.steps
            ratio = networks.ratio(times, c.name, found[-1].name) if len(found) > 1 else []
            section.add(*speed(c.name, compiled, each, operations, sizes, device), *spread(ratio))
        each = through_trainer(found[0].network, compiled, sizes)
        section.add(*speed("UNet, DDPM, through Trainer", compiled, each, operations, sizes, device), "", "")


def speed(name: str, compiled: bool, each: float, operations: float, sizes: Sizes, device: torch.device) -> list[str]:
    """Returns the first cells of a row, for a step of `each` seconds and a number of floating-point operations."""
    peak = peak_of(device, "bfloat16")
    used = "" if peak is None else f"{operations / each / peak:.1%} of {peak / 1e12:.0f}"
    counts = [f"{sizes.images.batch / each:.0f}", f"{operations / each / 1e12:.2f}", used]
    return [name, "yes" if compiled else "no", *counts]


def spread(ratios: list[float]) -> list[str]:
    """Returns the median of ratios and their quartiles, as two cells."""
    if not ratios:
        return ["", ""]
    return networks.row("", "", ratios)[2:4]


def through_trainer(network: nn.Module, compiled: bool, sizes: Sizes, blocks: int = 5) -> float:
    """Returns the seconds of a step through `Trainer`, the median over blocks of steps after a first one."""
    device, marks, every = torch.device(sizes.device), list[float](), sizes.steps
    settings = Training(
        steps=every * (blocks + 1),
        device=sizes.device,
        precision="bfloat16",
        compile=compiled,
        channels_last=True,
        watch_every=every,
        warmup=10,
    )

    def watch(average: nn.Module, step: int) -> None:
        waited(device)
        marks.append(time.perf_counter())

    images = torch.randint(0, 256, (4 * sizes.images.batch, 3, sizes.images.size, sizes.images.size))
    batches = Batches(images.to(torch.uint8), sizes.images.batch, Quantization(256))
    objective = DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(1000))))
    Trainer(objective, settings, watch=watch).fit(batches)
    return statistics.median(b - a for a, b in pairwise(marks)) / every


def sampling(path: Path, sizes: Sizes) -> None:
    """Measures sampling steps at several batches, with and without CUDA graphs."""
    about = "DDIM, bfloat16 autocast, the median of several runs of 20 steps."
    head = ["batch", "ms a step", "steps of one image/s", "ms a step, CUDA graphs", "steps of one image/s", "speed-up"]
    section = Section(path, "Sampling", head, about)
    device = torch.device(sizes.device)
    network = contenders.channels_last(contenders.ours("UNet, DDPM", DDPM, sizes.images).network.to(device)).eval()
    if device.type != "cuda":
        section.note(f"CUDA graphs are replaced by calls of the network, because this device is {device}")
    for batch in sizes.sampled:
        shape = (batch, 3, sizes.images.size, sizes.images.size)
        denoiser = Learned(network, Tabulated(linear_betas(1000)))
        plain = sampling_step(denoiser, shape, device)
        with_cuda_graphs(denoiser, None if device.type == "cuda" else Calls())
        graphs = sampling_step(denoiser, shape, device)
        cells = [text for each in (plain, graphs) for text in (f"{1000 * each:.3f}", f"{batch / each:.0f}")]
        section.add(str(batch), *cells, f"{plain / graphs:.2f}")


class Calls(Recorder):
    """In place of CUDA graphs, for a rehearsal: the network is called again."""

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return function


def sampling_step(denoiser: Learned, shape: tuple[int, ...], device: torch.device) -> float:
    """Returns the median seconds of a sampling step."""
    sampler, found, steps = DDIM(denoiser), [], 20 if device.type == "cuda" else 2
    for turn in range(4):
        x, start = torch.randn(shape, device=device), time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            sampler(x, steps=steps, generator=Streams(turn, range(shape[0])))
        waited(device)
        found.append((time.perf_counter() - start) / steps)
    return statistics.median(found[1:])


class FreeLogits(nn.Module):
    """A network whose output is a parameter, so that a loss is measured alone.

    Args:
        vocabulary: number of tokens that it takes.
        length: number of positions.
        outputs: number of logits at each position.
        batch: number of examples.
    """

    def __init__(self, vocabulary: int, length: int, outputs: int, batch: int = 1) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(batch, length, outputs))

    def forward(self, x: Tensor, time: Tensor | None = None, **cond: Tensor) -> Tensor:
        return self.logits


def discrete(path: Path, sizes: Sizes) -> None:
    """Measures categorical losses beside plain cross-entropy: the loss alone, and with a network."""
    batch, length, vocabulary = sizes.tokens
    width, depth, heads = sizes.text
    about = (
        f"Batch {batch}, length {length}, {vocabulary:,} tokens. Loss and backward: alone, as the gradient of float32 "
        f"logits, and with a DiT of {depth} blocks of width {width} under bfloat16 autocast. The losses take turns."
    )
    head = ["loss", "of", "tokens/s", "seconds, ratio to cross-entropy", "quartiles"]
    section = Section(path, "Categorical losses at the size of GPT-2", head, about)
    device = torch.device(sizes.device)
    x0 = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    published = {"D3PM absorbing": d3pm_text.MODEL, "MDLM": mdlm.MODEL, "SEDD absorbing": sedd.MODEL}
    for of in ("logits", "network"):
        works: dict[str, Callable[[], None]] = {}
        for name, model in published.items():
            network = part(FreeLogits, batch=batch) if of == "logits" else part(DiT, width=width, depth=depth)
            network = network if of == "logits" else network.changed(heads=heads, timed=name != "MDLM")
            torch.manual_seed(0)
            recipe = replace(model, network=network)
            objective = recipe.objective((length,), Quantization(vocabulary)).to(device)
            if not works:
                inner = cast("Any", objective.denoiser).network
                works["cross-entropy"] = repeated(cross_entropy(inner, x0, of == "network"), device, 3)
            works[name] = repeated(loss_of(objective, x0, of == "network"), device, 3)
        times = networks.turns(works, sizes.images, f"losses of {of}", silent)
        for name in works:
            each = statistics.median(times[name]) / 3
            ratio = networks.ratio(times, name, "cross-entropy")
            section.add(name, of, f"{batch * length / each:,.0f}", *spread(ratio))


def loss_of(objective: nn.Module, x0: Tensor, autocast: bool) -> Callable[[], None]:
    """Returns a function that computes a loss and its gradients."""
    generator = torch.Generator(x0.device).manual_seed(0)

    def work() -> None:
        objective.zero_grad(set_to_none=True)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=autocast):
            loss = objective(x0, generator=generator)
        loss.total.mean().backward()

    return work


def cross_entropy(network: nn.Module, x0: Tensor, autocast: bool) -> Callable[[], None]:
    """Returns a function that computes the cross-entropy of a network and its gradients."""
    t = torch.full((len(x0),), 0.5, device=x0.device)

    def work() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=autocast):
            logits = network(x0, t)
        F.cross_entropy(logits.float().flatten(0, 1)[:, : logits.shape[-1]], x0.flatten()).backward()

    return work


def tests(path: Path, sizes: Sizes) -> None:
    """Runs the tests that are marked `device`."""
    section = Section(path, "Tests on the device", ["result", "tests"], "`pytest -m device`.")
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-m", "device", "tests/test_device.py"]
    counts, tail, pipe = dict[str, int](), list[str](), subprocess.PIPE
    folder, environment = Path(__file__).parents[1], os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
    ) as running:
        for line in cast("TextIO", running.stdout):
            tail = [*tail[-2:], line.strip()]
            if found := re.match(r"(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", line):
                counts[found[2]] = counts.get(found[2], 0) + 1
                section.rows = [[result.lower(), str(number)] for result, number in counts.items()]
                section.write()
                if found[2] in ("FAILED", "ERROR"):
                    section.note(f"{found[2]} {found[1]}")
    if running.returncode:
        for line in tail if not section.rows else ():
            section.note(line)
        raise SystemExit(1)


def figures(path: Path, sizes: Sizes) -> None:
    """Trains the digits and Fashion-MNIST by the command line and measures them on held-out images."""
    about = "Trained, sampled and measured by the command line, on held-out images and samples of the averaged weights."
    head = ["data", "steps", "seconds of training", "bits/dim", "Fréchet distance", "of held-out images"]
    section = Section(path, "Models of digits and Fashion-MNIST", head, about)
    work = path.with_suffix("")
    runs = {"digits": [sizes.digits, *sizes.trained]}
    if sizes.fashion is None:
        section.note("Fashion-MNIST is left out: give its folder, --fashion DIR")
    else:
        recipe = ["ddpm-mnist", *sizes.pictures] if sizes.pictures else [sizes.digits]
        runs["Fashion-MNIST"] = [*recipe, "--data.name", str(sizes.fashion), *sizes.trained]
    failed = False
    for name, (recipe, *options) in runs.items():
        run = work / name
        count = () if sizes.measured is None else ("--count", str(sizes.measured))
        if not succeeds(section, ["train", recipe, "--out", str(run), *options]):
            failed = True
            continue
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        section.add(name, str(last["step"]), f"{last['seconds']:.1f}", "", "", "")
        after = (["sample", str(run), "--out", str(path.parent / f"{name}.png")], ["evaluate", str(run), *count])
        if not all(succeeds(section, command) for command in after):
            failed = True
            continue
        results = json.loads((run / "evaluation.json").read_text())
        section.rows[-1][3:] = [f"{results[key]:.3f}" for key in ("bits_per_dim", "frechet", "frechet_of_held_out")]
        section.write()
    if failed:
        raise SystemExit(1)


def succeeds(section: Section, command: list[str]) -> bool:
    """Runs a command of `unnoise` and returns whether it succeeds; the section reports why it does not."""
    errors = io.StringIO()
    with redirect_stderr(errors):
        status = unnoise(command)
    if status:
        lines = errors.getvalue().strip().splitlines() or ["no message"]
        section.note(f"`unnoise {shlex.join(command)}` has failed: {lines[-1]}")
    return not status


PARTS: dict[str, Callable[[Path, Sizes], None]] = {
    "tests": tests,
    "training": training,
    "sampling": sampling,
    "discrete": discrete,
    "figures": figures,
}
"""The parts by name; `gpu.LIMITS` has their limits of time."""
