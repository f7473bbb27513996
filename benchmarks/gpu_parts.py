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
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.continuous import DDIM, DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments.cli import main as unnoise
from unnoise.experiments.papers import d3pm_text, mdlm, sedd
from unnoise.experiments.parts import part
from unnoise.shared.cuda_graphs import with_cuda_graphs
from unnoise.shared.data import Batches
from unnoise.shared.networks import DiT
from unnoise.shared.networks.unet_variants import DDPM
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.throughput import peak_of

from . import contenders, timing
from .categorical import FreeLogits
from .gpu_page import Calls, Section, Sizes, in_turns, repeated, spread, waited
from .gpu_samplers import samplers


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
        times = in_turns(works, sizes)
        for c in found:
            each = statistics.median(times[c.name]) / sizes.steps
            ratio = timing.ratios(times, c.name, found[-1].name) if len(found) > 1 else []
            section.add(*speed(c.name, compiled, each, operations, sizes, device), *spread(ratio))
        each = through_trainer(found[0].network, compiled, sizes)
        section.add(*speed("UNet, DDPM, through Trainer", compiled, each, operations, sizes, device), "", "")


def speed(name: str, compiled: bool, each: float, operations: float, sizes: Sizes, device: torch.device) -> list[str]:
    """Returns the first cells of a row, for a step of `each` seconds and a number of floating-point operations."""
    peak = peak_of(device, "bfloat16")
    used = "" if peak is None else f"{operations / each / peak:.1%} of {peak / 1e12:.0f}"
    counts = [f"{sizes.images.batch / each:.0f}", f"{operations / each / 1e12:.2f}", used]
    return [name, "yes" if compiled else "no", *counts]


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
        times = in_turns(works, sizes)
        for name in works:
            each = statistics.median(times[name]) / 3
            ratio = timing.ratios(times, name, "cross-entropy")
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
    "samplers": samplers,
    "discrete": discrete,
    "figures": figures,
}
"""The parts by name; `gpu.LIMITS` has their limits of time."""
