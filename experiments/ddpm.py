"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020, arXiv 2006.11239).

The networks are those of the paper (`networks.presets`), except for the digits, which use this package's own. Their
time input is 1000 t = n, where the published code counts from n - 1 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..continuous import (
    Ancestral,
    Clipped,
    DenoisingLoss,
    Learned,
    Tabulated,
    VariationalBound,
    large,
    linear_betas,
    small,
)
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective, Stratified, independent
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler, device_of
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings, report
from .evaluation import labels_of
from .experiment import at_most
from .images import Chain, Data, Network
from .reproduce import trained

VARIANCES = {"large": large, "small": small}


@serializable("experiments.DDPM", formerly="unnoise.experiments.ddpm.DDPM")
@dataclass(frozen=True)
class DDPM(Chain):
    """Noise prediction with the simple loss on a linear table of betas."""

    steps: int = 1000
    """Number of steps of the diffusion, T; beta grows from --first-beta to 0.02, both scaled by 1000 / T."""
    first_beta: float = 1e-4
    """First beta of the linear table at T = 1000, such as 1e-4; for other T it is scaled by 1000 / T."""
    variance: Literal["large", "small"] = "large"
    """Variance of the reverse steps: large is beta_t, as in the paper for CIFAR-10, small is that of the posterior."""
    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps, such as 100."""
    time_power: float = 0.0
    """Exponent p of stratified training times u^p, u uniform; 0 for independent uniform times, as in the paper."""

    loss_unit = "MSE of the noise"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, classes=self.data.classes)
        times = Stratified(self.time_power) if self.time_power else independent
        return DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(self.steps, self.first_beta))), times=times)

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), VARIANCES[self.variance])

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        """Returns the bound of the clipped denoiser, as published."""
        return VariationalBound(
            Clipped(denoiser), quantization, variance=VARIANCES[self.variance], terms=self.bound_terms
        )

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Rate and distortion of progressive coding (figure 5 and table 4), and progressive decoding (figure 6)."""
        from ..shared.figures import Lines, save_lines, save_strip

        images, test = self.data.load("train", progress), self.data.load("test", progress)
        denoiser, quantization = trained(self, images, folder, progress).denoiser, images.quantization
        bound, count, device = self.bound(denoiser, quantization), min(len(test.k), 256), device_of(denoiser)
        x0, generator = quantization.continuous(test.k[:count]).to(device), torch.Generator(device).manual_seed(0)
        cond: dict[str, Any] = {} if self.data.classes is None else {"label": labels_of(test)[:count].to(device)}
        curve = bound.rate_distortion(x0, generator=generator, progress=progress, **cond)
        rate, rmse = curve.rate.mean(1).tolist(), curve.rmse.square().mean(1).sqrt().tolist()
        remaining = list(range(self.steps, 0, -1))
        unit = f"RMSE in quantization levels (0 to {quantization.levels - 1})"
        save_lines(
            folder / "figure.png",
            {
                "distortion": Lines("reverse steps remaining", unit, {"": (remaining, rmse)}),
                "rate": Lines("reverse steps remaining", "bits/dim received", {"": (remaining, rate)}),
                "rate-distortion": Lines("bits/dim received", unit, {"": (rate, rmse)}),
            },
        )
        times = [t / 10 for t in range(10, 0, -1)]
        states = []
        for t in torch.tensor(times, dtype=torch.float64):
            at = torch.round(t * self.steps) / self.steps
            x_t = bound.schedule.corrupt(x0[:6], at, generator=generator)
            with torch.no_grad():
                estimate = bound.denoiser(x_t, at, **{k: v[:6] for k, v in cond.items()})
            states.append(quantization.quantize(estimate).cpu() / (quantization.levels - 1))
        save_strip(
            folder / "decoding.png",
            {"received so far": (times, states)},
            "progressive decoding: the estimate of x_0 from x_t",
        )
        chosen = sorted({round(i * self.steps / 10) for i in range(10, 0, -1)} | {1}, reverse=True)
        rows = [[str(n), f"{rate[self.steps - n]:.4f}", f"{rmse[self.steps - n]:.3f}"] for n in chosen]
        total = float(bound(x0, generator=generator, progress=progress, **cond).bits_per_dim(test.dims).mean())
        page = folder / "table.md"
        page.write_text(
            f"# Rate and distortion\n\n{count} held-out images of {self.data.name}. The bound is {total:.3f} bits/dim "
            f"in all: the rate of all steps but the last, and {total - rate[-1]:.3f} bits/dim of the last step, which "
            "codes the image without loss.\n\n![rate and "
            "distortion](figure.png)\n\n![decoding](decoding.png)\n\n"
            f"{report.table(['reverse steps remaining', 'rate, bits/dim', unit], rows)}\n"
        )
        return page


def cifar10() -> DDPM:
    """CIFAR-10 (table 1): FID 3.17, IS 9.46 at 1000 steps, bound <= 3.75 bits/dim."""
    training = Training(steps=800_000, learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, variant="ddpm")
    return DDPM(Data("uoft-cs/cifar10", 128, flip=True), network, training, 1000)


def lsun256() -> DDPM:
    """A folder of LSUN Church at 256 x 256 (table 3): FID 7.89.

    The paper's Cat (FID 19.75) is trained for 1.8M steps, its Bedroom (6.36) for 2.4M and without flips.
    """
    training = Training(steps=1_200_000, learning_rate=2e-5, warmup=5000, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, variant="ddpm")
    return DDPM(Data("lsun", 64, size=(256, 256), flip=True), network, training, 1000, variance="small")


def celebahq256() -> DDPM:
    """A folder of CelebA-HQ at 256 x 256; the paper shows samples and reports no FID."""
    training = Training(steps=500_000, learning_rate=2e-5, warmup=5000, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, variant="ddpm")
    return DDPM(Data("celebahq", 64, size=(256, 256), flip=True), network, training, 1000, variance="small")


def digits() -> DDPM:
    """8 x 8 digits of 17 quantization levels.

    The first noise level is 0.06, half of the distance between quantization levels. With the published 0.01, chosen for
    256 levels, half of the bound would be spent on noise so small that rounding removes it.
    """
    return DDPM(**common_settings.digits(), steps=100, first_beta=4e-4, variance="small", time_power=1.0)


def mnist() -> DDPM:
    """28 x 28 digits of 256 quantization levels."""
    return DDPM(**common_settings.mnist(), variance="small", time_power=1.0)


def smoke() -> DDPM:
    """A test of a few seconds that every part of the recipe runs."""
    return DDPM(**common_settings.smoke(), steps=100, bound_terms=4, variance="small", time_power=1.0)
