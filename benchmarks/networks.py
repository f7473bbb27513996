"""What the papers' U-Nets cost beside other libraries' and beside each other, as ratios in one run:
`make bench-networks`.

Contenders take turns, A B C, B C A, ..., and a ratio is the median over the rounds of the ratio within a round, with
its quartiles: what else runs on the machine strikes all alike. One thread, and the seconds of the processor, unless
`--threads` says otherwise. `python -m benchmarks.networks --smoke` runs everything once on the smallest sizes, to see
that it runs: its ratios say nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from unnoise.experiments import ddpm, report
from unnoise.experiments.pretrained import diffusers as importer
from unnoise.experiments.pretrained.weights import fill
from unnoise.shared.networks import UNet
from unnoise.shared.networks.unet_variants import DDPM, DDPMPP, NCSNPP, PLAIN, UNetVariant
from unnoise.shared.progress import Progress, bar, silent
from unnoise.shared.training import Trainer
from unnoise.shared.training.precision import native_bfloat16

Call = Callable[[Tensor, Tensor], Tensor]
Rows = list[list[str]]

HEAD = ["", "", "ratio", "quartiles", "target", "met"]
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name that occurs in a device's counts."""
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}
"""What torch's counter leaves out on a CPU."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rounds: int = 9
    """Turns of each contender."""
    batch: int = 16
    """Images in a batch; half as many for NCSN++."""
    threads: int = 1
    """With more than one, time is the clock's and not the processor's."""
    size: int = 32
    """Height and width of the images."""
    width: int = 64
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channel multiplier of each resolution; the second has attention."""
    blocks: int = 2
    """Residual blocks for each resolution."""
    digits: bool = False
    """Train the digits model in float32 and in bfloat16 too: minutes."""
    digits_steps: int = 300
    """Steps of each of these trainings."""
    compile: bool = True
    """Compile the networks on a GPU."""
    smoke: bool = False
    """Everything once on the smallest sizes, whatever else is asked for."""


@dataclass(frozen=True)
class Contender:
    """A network and how it is called, `(x, time) -> prediction`."""

    name: str
    network: nn.Module
    call: Call

    def forward(self, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        """One evaluation without gradients."""

        def work() -> None:
            with torch.no_grad(), precision(x.device, dtype):
                self.call(x, t)

        return work

    def training(self, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        """Forward, backward and a step of Adam."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5, fused=True)

        def work() -> None:
            with precision(x.device, dtype):
                y = self.call(x, t)
            (y.float() - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return work

    def flops(self, x: Tensor, t: Tensor) -> float:
        """Of one evaluation."""
        return counted(self.forward(x, t))


def precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """What the trainer runs a network under."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def counted(work: Callable[[], None]) -> float:
    """Floating-point operations, two for a product and a sum."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work()
    return float(counter.get_total_flops())


def ours(name: str, style: UNetVariant, settings: Settings, dropout: float = 0.0) -> Contender:
    """Our network of the benchmark's size."""
    torch.manual_seed(0)
    shape = (3, settings.size, settings.size)
    network = UNet(shape, settings.width, settings.multipliers, settings.blocks, (2,), dropout=dropout, variant=style)
    return Contender(name, network, network)


def diffusers_unet(settings: Settings, dropout: float = 0.0) -> Contender:
    """The same architecture as `DDPM` in diffusers."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    attends = [i == 1 for i in range(len(settings.multipliers))]
    network = UNet2DModel(
        sample_size=settings.size,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=tuple(settings.width * m for m in settings.multipliers),
        layers_per_block=settings.blocks,
        attention_head_dim=None,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        dropout=dropout,
    )
    return Contender("diffusers UNet2DModel", network, lambda x, t: network(x, t).sample)


def lucidrains_unet(settings: Settings) -> Contender:
    """Its own architecture, with linear attention where ours has none: compared by time for each operation."""
    from denoising_diffusion_pytorch import Unet

    torch.manual_seed(0)
    attends = tuple(i == 1 for i in range(len(settings.multipliers)))
    network = Unet(dim=settings.width, dim_mults=settings.multipliers, full_attn=attends)
    return Contender("denoising-diffusion-pytorch Unet", network, network)


def peers(settings: Settings) -> tuple[dict[str, Contender], list[str]]:
    """Those that can be imported, and why the others cannot."""
    found, missing = {}, []
    for package, make in {"diffusers": diffusers_unet, "denoising-diffusion-pytorch": lucidrains_unet}.items():
        try:
            found[package] = make(settings)
        except Exception as error:  # a peer that does not fit this build of torch raises anything
            missing.append(
                f"{package} is left out: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    return found, missing


def turns(
    works: dict[str, Callable[[], None]], settings: Settings, label: str, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each work in each round, after one to warm up."""
    clock = time.process_time if settings.threads == 1 and not torch.cuda.is_available() else time.perf_counter
    names, found = list(works), {name: list[float]() for name in works}
    for turn in progress(range(settings.rounds + 1), settings.rounds + 1, label):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # none is always the first
            start = clock()
            works[name]()
            if turn:
                found[name].append(clock() - start)
    return found


def ratio(times: dict[str, list[float]], name: str, base: str, scale: float = 1.0) -> list[float]:
    """Of one contender's seconds to another's, in each round, times `scale`."""
    return [scale * a / b for a, b in zip(times[name], times[base], strict=True)]


def row(what: str, who: str, ratios: list[float], target: float | None = None) -> list[str]:
    """A line of the table."""
    middle = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (middle,) * 3
    met = "" if target is None else ("yes" if middle <= target else "no")
    return [what, who, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", "" if target is None else f"{target:.2f}", met]


def beside_peers(settings: Settings, progress: Progress) -> tuple[Rows, list[str]]:
    """Our networks over those of other libraries, in float32 and in the precision that the trainer takes here."""
    found, notes = peers(settings)
    plain, paper = ours("UNet, PLAIN", PLAIN, settings), ours("UNet, DDPM", DDPM, settings)
    x, t = batch(settings.batch, settings.size)
    if "diffusers" in found:
        state = found["diffusers"].network.state_dict()
        fill(
            paper.network, importer.names(paper.network), state, "UNet2DModel"
        )  # so that both compute the same numbers
        with torch.no_grad():
            apart = float((paper.call(x[:2], t[:2]) - found["diffusers"].call(x[:2], t[:2])).abs().max())
        notes.append(f"with the weights of diffusers' network ours differs from it by {apart:.0e} at most")
    everyone = [*found.values(), paper, plain]
    flops = {c.name: c.flops(x, t) for c in everyone}
    notes += [
        f"{c.name}: {parameters(c):,} parameters, {flops[c.name] / 1e9:.2f} GFLOP for {settings.batch} images"
        for c in everyone
    ]
    half, wide = native_bfloat16(torch.device("cpu")), torch.channels_last
    if not half:
        notes.append("bfloat16 is left out: this processor does not have it natively, and the precision is float32")
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
                    mine = name.startswith("UNet")
                    rows.append(
                        row(
                            what,
                            f"{name} / {base.name}, float32",
                            ratio(times, name, base.name),
                            0.55 if mine else None,
                        )
                    )
    for dtype in (torch.float32, torch.bfloat16) if half else (torch.float32,):
        for what in ("forward", "training step"):
            narrow, broad = ours("", DDPM, settings), ours("", DDPM, settings)
            broad.network.to(memory_format=wide)
            works = {
                "": work_of(narrow, what, x, t, dtype),
                wide: work_of(broad, what, x.to(memory_format=wide), t, dtype),
            }
            kind = str(dtype).split(".")[-1]
            found_here = turns(works, settings, f"{what}, channels last, {kind}", progress)
            rows.append(row(what, f"UNet, DDPM, {kind}: channels last / as it is", ratio(found_here, wide, "")))
    return rows, notes


def filters(settings: Settings, progress: Progress) -> Rows:
    """NCSN++ with FIR filters and a residual image over DDPM++ of the same size."""
    first, second = ours("NCSN++", NCSNPP, settings), ours("DDPM++", DDPMPP, settings)
    x, t = batch(max(settings.batch // 2, 1), settings.size)
    rows = []
    for what in ("forward", "training step"):
        times = turns({c.name: work_of(c, what, x, t) for c in (first, second)}, settings, f"{what}, NCSN++", progress)
        rows.append(row(what, "NCSN++ / DDPM++", ratio(times, "NCSN++", "DDPM++"), 1.3))
    return rows


def digits(settings: Settings, progress: Progress, recipe: ddpm.DDPM, draws: int = 20) -> Rows:
    """The digits recipe in both precisions with one seed and one budget, and the loss of the averaged network on
    held-out images.
    """
    losses = []
    images, test = recipe.data.load("train"), recipe.data.load("test")
    cooldown = settings.digits_steps // 3
    for bfloat16 in (False, None):  # None is the trainer's automatic precision
        training = replace(
            recipe.training, steps=settings.digits_steps, cooldown=cooldown, bfloat16=bfloat16, device="cpu"
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
    who = f"digits, {settings.digits_steps} steps: {losses[1]:.5f} in bfloat16, {losses[0]:.5f} in float32, their distance"
    return [["held-out loss", who, f"{apart:.4f}", "", "0.02", "yes" if apart <= 0.02 else "no"]]


def on_a_gpu(settings: Settings, progress: Progress, device: torch.device, steps: int = 10) -> Rows:
    """A training step of DDPM's CIFAR-10 network in bfloat16, compiled, channels last, beside diffusers'.

    Images a second, MFU.
    """
    contenders, rows = [ours("UNet, DDPM", DDPM, settings, 0.1)], []
    try:
        contenders.append(diffusers_unet(settings, 0.1))
    except Exception as error:  # as in `peers`
        rows.append(["training step", f"diffusers is left out: {type(error).__name__}", "", "", "", ""])
    x, t = (v.to(device) for v in batch(settings.batch, settings.size))
    x, works, total = x.to(memory_format=torch.channels_last), {}, 0.0
    for c in contenders:
        c.network.to(device, memory_format=torch.channels_last)
        total = total or counted(c.training(x, t, torch.bfloat16))
        compiled = replace(c, call=torch.compile(c.call)) if settings.compile else c
        works[c.name] = synchronised(compiled.training(x, t, torch.bfloat16), device, steps)
    times = turns(works, settings, f"training step, {device}", progress)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
    peak = next((v for k, v in PEAKS.items() if k in name), None)
    for c in contenders:
        each = statistics.median(times[c.name]) / steps
        used = "" if peak is None else f", {total / each / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
        rows.append(
            ["training step", f"{c.name}, bfloat16, {name}: {settings.batch / each:.0f} images/s{used}", "", "", "", ""]
        )
    if len(contenders) > 1:
        what = "UNet, DDPM / diffusers, bfloat16, compiled, channels last"
        rows.append(row("training step", what, ratio(times, contenders[0].name, contenders[1].name), 1.0))
    return rows


def synchronised(work: Callable[[], None], device: torch.device, times: int) -> Callable[[], None]:
    """So many times the work, and what it left to the device."""

    def whole() -> None:
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def work_of(c: Contender, what: str, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """The forward or the training step."""
    return c.forward(x, t, dtype) if what == "forward" else c.training(x, t, dtype)


def batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels of times."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator), torch.rand(count, generator=generator) * 999


def parameters(c: Contender) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in c.network.parameters())


def cpu_says(field: str) -> str:
    """A line of /proc/cpuinfo, "" where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def cpu() -> str:
    """Name of the processor."""
    return cpu_says("model name") or platform.processor() or platform.machine()


def version(package: str) -> str:
    """Of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def run(settings: Settings, progress: Progress) -> str:
    """The report, as Markdown."""
    if settings.smoke:
        return written(SMOKE, *smoke())
    torch.set_num_threads(settings.threads)
    rows, notes = beside_peers(settings, progress)
    rows += filters(settings, progress)
    if settings.digits:
        rows += digits(settings, progress, ddpm.digits())
    if torch.cuda.is_available():
        rows += on_a_gpu(replace(settings, width=128, batch=128), progress, torch.device("cuda"))
    else:
        notes.append("no GPU here: the compiled bfloat16 training step on one is left out")
    return written(settings, rows, notes)


def written(settings: Settings, rows: Rows, notes: list[str]) -> str:
    """The table and what there is to say of it."""
    packages = ("torch", "diffusers", "denoising-diffusion-pytorch")
    head = f"{cpu()}, {torch.get_num_threads()} threads, {', '.join(f'{p} {version(p)}' for p in packages)}, {settings.rounds} rounds"
    return "\n\n".join([head, report.table(HEAD, rows), "\n".join(f"- {note}" for note in notes)])


SMOKE = Settings(rounds=1, batch=1, size=8, width=32, multipliers=(1, 1), blocks=1, digits_steps=2, compile=False)


def smoke() -> tuple[Rows, list[str]]:
    """Every part on networks of a few channels, the GPU's on the CPU: seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, notes = beside_peers(SMOKE, silent)
        rows += filters(SMOKE, silent)
        rows += digits(SMOKE, silent, ddpm.smoke(), draws=1)
        rows += on_a_gpu(SMOKE, silent, torch.device("cpu"), 1)
    finally:
        torch.set_num_threads(before)
    return rows, notes


if __name__ == "__main__":
    print(run(tyro.cli(Settings), bar))
