"""Score-based generative modelling through SDEs (Song et al. 2021, arXiv 2011.13456).

Data are in [-1, 1] throughout, where the paper has VE in [0, 1]: VE's sigmas are doubled, which is the same process.
The papers' networks are the papers' own (`networks.presets`). DDPM++ is told 1000 t where the paper has 999 t, and
NCSN++ the log of the doubled sigma, which shifts the phases of its random Fourier features alone. The times of a batch
are stratified where the papers draw them one by one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..sde import (
    VE,
    VP,
    Adaptive,
    CorrectorPredictor,
    DenoisingLoss,
    EulerMaruyama,
    Langevin,
    Learned,
    MaximumLikelihood,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    SubVP,
    VariationalDequantization,
)
from ..shared.denoiser import Denoiser
from ..shared.gaussian.dequantization import Dequantized, Dequantizer
from ..shared.gaussian.schedule import Schedule
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .evaluation import bits_per_dim
from .images import Data, Density, Network
from .reproduce import Study, Sweep, fitted, trained
from .time_grids import whole


@serializable("experiments.ScoreSDE", formerly="unnoise.experiments.score_sde.ScoreSDE")
@dataclass(frozen=True)
class ScoreSDE(Density):
    """Denoising score matching on an SDE, trained on dequantised data so that its density has a meaning."""

    sde: Literal["vp", "sub-vp", "ve"] = "vp"
    """Which SDE."""
    sigma_min: float = 0.02
    """VE: smallest noise, for data in [-1, 1]."""
    sigma_max: float = 100.0
    """VE: largest noise; by the published rule the largest distance between two images (Song & Ermon 2020)."""
    method: Literal["pc", "cp", "predictor", "euler-maruyama", "heun", "rk45"] = "pc"
    """Sampler: predictor and corrector in the paper's order or, as its code, the corrector first; the predictor alone
    (reverse diffusion); Euler-Maruyama; or the probability flow by Heun's method or by RK45."""
    snr: float = 0.1
    """Signal-to-noise ratio of the Langevin corrector."""
    ve_snr: float = 0.16
    """The same where `reproduce` trains VE beside the others."""
    weight: Literal["sigma2", "likelihood"] = "sigma2"
    """Of the score's error.

    Sigma^2, or g^2 with the times that importance sampling draws, which bounds the likelihood.
    """
    t_last: float = 1e-3
    """Last noisy time of the sampler, whose last step denoises."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    loss_unit = "weighted MSE of the score"

    def schedule(self) -> Schedule:
        """The SDE's marginals."""
        if self.sde == "ve":
            return VE(self.sigma_min, self.sigma_max, t_last=self.t_last)
        return (VP if self.sde == "vp" else SubVP)(t_last=self.t_last)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        denoiser = Learned(
            self.network.build(shape, classes=self.data.classes), self.schedule(), time_input=self.network.label
        )
        if self.weight == "likelihood":
            return MaximumLikelihood(denoiser, Stratified())
        return DenoisingLoss.score_matching(denoiser, times=Stratified(self.time_power))

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return self.by(self.method, denoiser)

    def by(self, method: str, denoiser: Denoiser) -> Sampler:
        """The sampler of that name."""
        if method in ("pc", "cp"):
            both = PredictorCorrector if method == "pc" else CorrectorPredictor
            return both(ReverseDiffusion(denoiser), Langevin(denoiser, self.snr))
        if method == "rk45":
            return ProbabilityFlow(denoiser, Adaptive(self.tolerance, self.tolerance))
        return {"predictor": ReverseDiffusion, "euler-maruyama": EulerMaruyama, "heun": ProbabilityFlow}[method](
            denoiser
        )

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return whole(denoiser.corruption) if self.method == "rk45" else steps

    def closer(self, denoiser: Denoiser, study: Study, folder: Path, progress: Progress) -> Dequantizer:
        """A variational dequantiser for a finished model, trained on the bound of its likelihood.

        Song et al. 2021b, section 5.
        """
        images = study.images
        channels, *size = images.shape
        flow = VariationalDequantization(
            images.quantization,
            replace(self.network, width=max(self.network.width // 2, 8)).build((2 * channels, *size)),
        )
        objective = Dequantized(MaximumLikelihood(copy.deepcopy(denoiser).requires_grad_(False), Stratified()), flow)
        short = replace(
            self.training, steps=max(self.training.steps // 5, 1), cooldown=0, watch_every=self.training.steps
        )
        conditions = () if self.data.classes is None else ("label",)
        batches = images.batches(self.data.batch, Quantization.quantized, conditions=conditions, seed=self.data.seed)
        return fitted(objective, short, batches, folder / "dequantiser", progress).dequantizer

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """VP, sub-VP and VE trained alike.

        Bits/dim, and Fréchet distance by network evaluations for every sampler (tables 1 and 2).
        """
        study, test = Study(self, folder, progress), self.load("test", progress)
        sweep = Sweep(study, "SDE", "bits/dim, uniform", "bits/dim, variational", "sampler")
        for name, recipe in self.variants().items():
            denoiser = trained(recipe, study.images, folder / name.lower(), progress).denoiser
            bits, error = bits_per_dim(recipe, denoiser, test, progress=progress)
            spread = recipe.closer(denoiser, study, folder / name.lower(), progress)
            closer, _ = bits_per_dim(recipe, denoiser, test, measure=recipe.coded(denoiser, spread), progress=progress)
            codes = {"bits_per_dim": bits, "standard_error": error, "bits_per_dim_variational": closer}
            for label, method, cost in RUNS:
                cells = (name, f"{bits:.3f} ± {error:.3f}", f"{closer:.3f}", label)
                grids = [max(-(-n // cost), 2) for n in EVALUATIONS if n <= 10 * self.sampling_steps]
                for steps in [whole(denoiser.corruption)] if method == "rk45" else grids:
                    shown = method == "rk45" or steps == grids[-1]
                    sweep.run(label, cells, recipe.by(method, denoiser), steps, recipe, shown, name, **codes)
        text = (
            f"One network and {self.training.steps} training steps for each SDE. Bits/dim of {len(test.k)} held-out images are exact up to "
            "dequantisation, uniform as in training, or by a flow trained for the finished model (RK45, rtol = atol = "
            f"{self.tolerance:g}, one Rademacher probe). Langevin corrector: one step a level, "
            f"snr {', '.join(f'{r.snr:g} ({n})' for n, r in self.variants().items())}."
        )
        return sweep.write("Score SDEs: samplers and likelihoods", text, across=len(RUNS))

    def variants(self) -> dict[str, ScoreSDE]:
        """The three SDEs, otherwise alike."""
        ve = replace(self, sde="ve", snr=self.ve_snr, t_last=1e-5, time_power=1.0)
        return {"VP": replace(self, sde="vp"), "sub-VP": replace(self, sde="sub-vp"), "VE": ve}


# Samplers by name, with the evaluations of one step.
RUNS = (
    ("predictor-corrector", "pc", 2),
    ("reverse diffusion", "predictor", 1),
    ("Euler-Maruyama", "euler-maruyama", 1),
    ("probability flow, Heun", "heun", 2),
    ("probability flow, RK45", "rk45", 1),
)
EVALUATIONS = (20, 50, 100, 200)


def published(data: Data, network: Network, steps: int, ema: float, **more: Any) -> ScoreSDE:
    """Adam at 2e-4 with 5000 steps of warm-up, gradients clipped to 1, 1000 steps of sampling."""
    training = Training(steps=steps, learning_rate=2e-4, warmup=5000, clip=1.0, ema=ema, watch_every=10_000)
    return ScoreSDE(data, network, training, 1000, **more)


def cifar10() -> ScoreSDE:
    """CIFAR-10, DDPM++ cont., VP: FID 2.55 (3.93 by the flow), 3.16 bits/dim; Euler-Maruyama, no corrector."""
    network = Network(128, (1, 2, 2, 2), 4, (2,), 1, dropout=0.1, style="ddpmpp")
    return published(Data("uoft-cs/cifar10", 128, flip=True), network, 950_000, 0.9999, method="euler-maruyama")


def cifar10_subvp() -> ScoreSDE:
    """CIFAR-10, DDPM++ cont., sub-VP: FID 2.61 (3.16 by the flow), 3.02 bits/dim."""
    return replace(cifar10(), sde="sub-vp")


def cifar10_ve() -> ScoreSDE:
    """CIFAR-10, NCSN++ cont., VE: FID 2.38 by 2000 evaluations of the predictor-corrector sampler."""
    ve: dict[str, Any] = {"sde": "ve", "method": "cp", "snr": 0.16, "t_last": 1e-5}
    network = Network(128, (1, 2, 2, 2), 4, (2,), 1, dropout=0.1, style="ncsnpp")
    return published(Data("uoft-cs/cifar10", 128, flip=True), network, 950_000, 0.999, **ve)


def cifar10_subvp_deep() -> ScoreSDE:
    """CIFAR-10, DDPM++ cont. deep, sub-VP: 2.99 bits/dim, FID 2.92 by the flow, 2.41 by the SDE."""
    recipe = cifar10_subvp()
    return replace(recipe, network=replace(recipe.network, blocks=8))


def cifar10_ve_deep() -> ScoreSDE:
    """CIFAR-10, NCSN++ cont. deep, VE: FID 2.20."""
    recipe = cifar10_ve()
    return replace(recipe, network=replace(recipe.network, blocks=8))


def cifar10_likelihood() -> ScoreSDE:
    """CIFAR-10, ScoreFlow (Song et al. 2021b, arXiv 2101.09258).

    DDPM++ VP, about 2.8 bits/dim, there with variational dequantisation.
    """
    return replace(cifar10(), weight="likelihood")


def celeba64_ve() -> ScoreSDE:
    """A folder of CelebA at 64 x 64, NCSN++ VE with sigma_max 90 on [0, 1]; the paper prints no FID for it.

    Trained in continuous time with Fourier features; the released model has discrete levels, told by their number.
    """
    ve: dict[str, Any] = {"sde": "ve", "sigma_max": 180.0, "method": "cp", "snr": 0.17, "t_last": 1e-5}
    network = Network(128, (1, 2, 2, 2), 4, (4,), 1, dropout=0.1, style="ncsnpp")
    return published(Data("celeba", 128, size=(64, 64), flip=True), network, 1_300_000, 0.999, **ve)


def ffhq256_ve() -> ScoreSDE:
    """A folder of FFHQ at 256 x 256, NCSN++ VE with sigma_max 348 on [0, 1], 2000 steps.

    The paper shows samples, no FID.
    """
    ve: dict[str, Any] = {"sde": "ve", "sigma_max": 696.0, "method": "cp", "snr": 0.075, "t_last": 1e-5}
    network = Network(128, (1, 1, 2, 2, 2, 2, 2), 2, (16,), 1, style="ncsnpp-skip")
    return replace(
        published(Data("ffhq", 64, size=(256, 256), flip=True), network, 2_400_000, 0.999, **ve), sampling_steps=2000
    )


def digits() -> ScoreSDE:
    """8 x 8 digits of 17 levels.

    The sampler denoises from t = 0.01, a noise of 0.045 and so less than half of a cell.
    """
    return ScoreSDE(
        **common_settings.digits() | {"sampling_steps": 50},
        time_power=1.5,
        t_last=0.01,
        sigma_min=0.04,
        sigma_max=9.0,
        tolerance=1e-3,
    )


def mnist() -> ScoreSDE:
    """28 x 28 digits of 256 levels; sigma_max is the largest distance between two of them."""
    return ScoreSDE(**common_settings.mnist(), sigma_max=31.6)


def smoke() -> ScoreSDE:
    """Seconds, to see that the whole path runs."""
    return ScoreSDE(**common_settings.smoke(), tolerance=0.1)
