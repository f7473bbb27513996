"""The U-Nets beside those of other libraries, by time for each floating-point operation, and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from unnoise.experiments.pretrained import diffusers as importer
from unnoise.experiments.pretrained.weights import fill
from unnoise.shared.networks import UNet
from unnoise.shared.networks.unet_variants import DDPM, DDPMPP, NCSNPP, PLAIN
from unnoise.shared.training.precision import native_bfloat16

from . import contenders
from .contenders import Contender as Network
from .contenders import Settings
from .timing import Contender, Workload, asserted

GROUP = "networks"
SMOKE = Settings(batch=1, size=8, width=32, multipliers=(1, 1), blocks=1)
QUICK = Settings(batch=8)
WHAT = ("forward", "training step")
HELD = 1.02
"""Largest ratio to diffusers in float32: equal, but for the noise of a run."""
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def contender(network: Network, what: str, x: Tensor, t: Tensor, dtype: torch.dtype = FLOAT32) -> Contender:
    """Returns a network's work with its GFLOP, those of a forward pass; a training step has three times as many."""
    passes = 1 if what == "forward" else 3
    return Contender(contenders.work_of(network, what, x, t, dtype), passes * operations(network, x, t) / 1e9)


@cache
def operations(network: Network, x: Tensor, t: Tensor) -> float:
    """Returns the floating-point operations of an evaluation."""
    return network.flops(x, t)


def with_equal_weights(paper: Network, other: Network, x: Tensor, t: Tensor) -> str:
    """Fills our network with the weights of the diffusers network and compares their outputs."""
    network = cast("UNet", paper.network)
    fill(network, importer.names(network), other.network.state_dict(), "UNet2DModel")
    with torch.no_grad():
        return asserted(paper.call(x[:2], t[:2]), other.call(x[:2], t[:2]), "outputs with equal weights", 1e-4)


def beside_diffusers(what: str, dtype: torch.dtype, smoke: bool) -> Workload:
    """Returns our network beside that of diffusers with the same weights: float32, or ours in bfloat16."""
    settings = SMOKE if smoke else QUICK
    ours, other = contenders.ours("UNet, DDPM", DDPM, settings), contenders.diffusers_unet(settings)
    x, t = contenders.batch(settings.batch, settings.size)
    references = {"diffusers, float32": contender(other, what, x, t)}
    if dtype != FLOAT32:
        references["diffusers, bfloat16"] = contender(other, what, x, t, dtype)
    elif find_spec("denoising_diffusion_pytorch"):
        lucid = contenders.lucidrains_unet(settings)
        references["denoising-diffusion-pytorch"] = contender(lucid, what, x, t)
    return Workload(
        name=f"U-Net, {what}" + ("" if dtype == FLOAT32 else ", bfloat16"),
        group=GROUP,
        unit="GFLOP",
        ours=contender(ours, what, x, t, dtype),
        base="diffusers, float32",
        references=references,
        equal=lambda: with_equal_weights(ours, other, x, t),
        target=HELD if dtype == FLOAT32 else 0.5,
        note=f"{contenders.parameters(ours):,} parameters, batch {settings.batch}",
    )


def beside_ours(name: str, first: str, second: str, what: str, smoke: bool, target: float | None) -> Workload:
    """Returns one of our networks beside another of the same size."""
    settings = SMOKE if smoke else QUICK
    variants = {"PLAIN": PLAIN, "DDPM": DDPM, "NCSN++": NCSNPP, "DDPM++": DDPMPP, "channels last": DDPM}
    made = {name: contenders.ours(name, variants[name], settings) for name in (first, second)}
    x, t = contenders.batch(settings.batch, settings.size)
    inputs = dict.fromkeys(made, x)
    if "channels last" in made:
        contenders.channels_last(made["channels last"].network)
        inputs["channels last"] = x.to(memory_format=torch.channels_last)

    def equal() -> str:
        with torch.no_grad():
            again = replace(made[first], call=contenders.ours(first, variants[first], settings).call)
            return asserted(made[first].call(inputs[first], t), again.call(x, t), f"{first} and a copy of it", 1e-4)

    return Workload(
        name=f"{name}, {what}",
        group=GROUP,
        unit="batch",
        ours=Contender(contenders.work_of(made[first], what, inputs[first], t)),
        base=second,
        references={second: Contender(contenders.work_of(made[second], what, inputs[second], t))},
        equal=equal,
        target=target,
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name; bfloat16 where the processor computes in it."""
    dtypes = [FLOAT32, *([BFLOAT16] if native_bfloat16(torch.device("cpu")) else [])]
    return {
        f"U-Net, {what}" + ("" if dtype == FLOAT32 else ", bfloat16"): partial(beside_diffusers, what, dtype, smoke)
        for dtype in dtypes
        for what in WHAT
    }


def further(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of `--full` alone: our variants beside each other."""
    pairs = {
        "NCSN++ over DDPM++": ("NCSN++", "DDPM++", 1.3),
        "channels last over as it is": ("channels last", "DDPM", None),
        "PLAIN over DDPM": ("PLAIN", "DDPM", None),
    }
    return {
        f"{name}, {what}": partial(beside_ours, name, first, second, what, smoke, target)
        for name, (first, second, target) in pairs.items()
        for what in WHAT
    }
