"""Score-based generative modeling through SDEs (Song et al. 2021, arXiv 2011.13456).

All data are in [-1, 1], where the paper has data in [0, 1] for VE: the sigmas of VE are doubled, which is the same
process. The networks are those of the papers (`networks.presets`). The time input of DDPM++ is 1000 t, where the paper
has 999 t; that of NCSN++ is the log of the doubled sigma, which only shifts the phases of its random Fourier features.
The times of a batch are stratified, where the papers draw them independently.
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
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.dequantization import DequantizedLoss, Dequantizer
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
    """Denoising score matching on an SDE, trained on dequantized data so that it has a likelihood."""

    sde: Literal["vp", "sub-vp", "ve"] = "vp"
    """Stochastic differential equation: variance-preserving, sub-variance-preserving or variance-exploding."""
    sigma_min: float = 0.02
    """VE: smallest noise level, for data in [-1, 1], such as 0.02."""
    sigma_max: float = 100.0
    """VE: largest noise level; the published rule is the largest distance between two images (Song & Ermon 2020)."""
    method: Literal["pc", "cp", "predictor", "euler-maruyama", "heun", "rk45"] = "pc"
    """Sampler: predictor-corrector (pc, or cp with the corrector first), predictor, Euler-Maruyama, or a flow solver.
    heun and rk45 solve the probability flow; predictor is reverse diffusion; cp is the order of the paper's code."""
    snr: float = 0.1
    """Signal-to-noise ratio r of the Langevin corrector, such as 0.16."""
    ve_snr: float = 0.16
    """Signal-to-noise ratio r of the corrector on VE, which `unnoise reproduce` trains beside the others."""
    weight: Literal["sigma2", "likelihood"] = "sigma2"
    """Weight of the squared error of the score: sigma^2, or g^2 for a bound on the likelihood.
    likelihood draws the times by importance sampling."""
    t_last: float = 1e-3
    """Time of the last noisy state of the sampler, between 0 and 1, such as 0.001; its last step denoises."""
    time_power: float = 1.0
    """Exponent p of the training times u^p, u uniform: 1 as published, larger values draw small noise more often."""

    loss_unit = "weighted MSE of the score"

    def schedule(self) -> Schedule:
        """Returns the marginals of the SDE."""
        if self.sde == "ve":
            return VE(self.sigma_min, self.sigma_max, t_last=self.t_last)
        return (VP if self.sde == "vp" else SubVP)(t_last=self.t_last)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        denoiser = Learned(
            self.network.build(shape, classes=self.data.classes), self.schedule(), time_input=self.network.time_input
        )
        if self.weight == "likelihood":
            return MaximumLikelihood(denoiser, Stratified())
        return DenoisingLoss.score_matching(denoiser, times=Stratified(self.time_power))

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.named_sampler(self.method, denoiser)

    def named_sampler(self, method: str, denoiser: GaussianDenoiser) -> Sampler:
        """Returns the sampler by its name, one of the values of `method`."""
        if method in ("pc", "cp"):
            both = PredictorCorrector if method == "pc" else CorrectorPredictor
            return both(ReverseDiffusion(denoiser), Langevin(denoiser, self.snr))
        if method == "rk45":
            return ProbabilityFlow(denoiser, Adaptive(self.tolerance, self.tolerance))
        return {"predictor": ReverseDiffusion, "euler-maruyama": EulerMaruyama, "heun": ProbabilityFlow}[method](
            denoiser
        )

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return whole(denoiser.corruption) if self.method == "rk45" else steps

    def variational_dequantizer(
        self, denoiser: GaussianDenoiser, study: Study, folder: Path, progress: Progress
    ) -> Dequantizer:
        """Returns a variational dequantizer for a trained model, trained on the bound of its likelihood.

        Source: Song et al. 2021b, section 5.
        """
        images = study.images
        channels, *size = images.shape
        flow = VariationalDequantization(
            images.quantization,
            replace(self.network, width=max(self.network.width // 2, 8)).build((2 * channels, *size)),
        )
        objective = DequantizedLoss(
            MaximumLikelihood(copy.deepcopy(denoiser).requires_grad_(False), Stratified()), flow
        )
        short = replace(
            self.training, steps=max(self.training.steps // 5, 1), cooldown=0, watch_every=self.training.steps
        )
        conditions = () if self.data.classes is None else ("label",)
        batches = images.batches(self.data.batch, Quantization.quantized, conditions=conditions, seed=self.data.seed)
        return fitted(objective, short, batches, folder / "dequantizer", progress).dequantizer

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Bits/dim of VP, sub-VP and VE, and Fréchet distance by evaluations for every sampler (tables 1 and 2)."""
        study, test = Study(self, folder, progress), self.load("test", progress)
        sweep = Sweep(study, "SDE", "bits/dim, uniform", "bits/dim, variational", "sampler")
        for name, recipe in self.variants().items():
            denoiser = trained(recipe, study.images, folder / name.lower(), progress).denoiser
            bits, error = bits_per_dim(recipe, denoiser, test, progress=progress)
            dequantizer = recipe.variational_dequantizer(denoiser, study, folder / name.lower(), progress)
            measure = recipe.exact_code_length(denoiser, dequantizer)
            closer, _ = bits_per_dim(recipe, denoiser, test, measure=measure, progress=progress)
            codes = {"bits_per_dim": bits, "standard_error": error, "bits_per_dim_variational": closer}
            for label, method, cost in RUNS:
                cells = (name, f"{bits:.3f} ± {error:.3f}", f"{closer:.3f}", label)
                counts = [max(-(-n // cost), 2) for n in EVALUATIONS if n <= 10 * self.sampling_steps]
                sampler, last = recipe.named_sampler(method, denoiser), len(counts) - 1
                for i, steps in enumerate([whole(denoiser.corruption)] if method == "rk45" else counts):
                    shown = method == "rk45" or i == last
                    sweep.run(label, cells, sampler, steps, recipe, shown, name, **codes)
        text = (
            f"One network and {self.training.steps} training steps for each SDE. Bits/dim of {len(test.k)} held-out "
            "images are exact up to dequantization, which is uniform as in training, or a flow that was trained for "
            f"the finished model (RK45, rtol = atol = {self.tolerance:g}, one Rademacher probe). The Langevin "
            "corrector takes one step at each noise level, with snr "
            f"{', '.join(f'{r.snr:g} ({n})' for n, r in self.variants().items())}."
        )
        return sweep.write("Score SDEs: samplers and likelihoods", text, across=len(RUNS))

    def variants(self) -> dict[str, ScoreSDE]:
        """Returns the recipes of the three SDEs, which are otherwise equal."""
        ve = replace(self, sde="ve", snr=self.ve_snr, t_last=1e-5, time_power=1.0)
        return {"VP": replace(self, sde="vp"), "sub-VP": replace(self, sde="sub-vp"), "VE": ve}


RUNS = (
    ("predictor-corrector", "pc", 2),
    ("reverse diffusion", "predictor", 1),
    ("Euler-Maruyama", "euler-maruyama", 1),
    ("probability flow, Heun", "heun", 2),
    ("probability flow, RK45", "rk45", 1),
)
"""Samplers: their names in the figure and as `method`, and the network evaluations of one step."""
EVALUATIONS = (20, 50, 100, 200)


def published(data: Data, network: Network, steps: int, ema: float, **more: Any) -> ScoreSDE:
    """Returns a recipe of the paper: Adam at 2e-4, warm-up of 5000 steps, gradient norm 1, 1000 sampling steps."""
    training = Training(steps=steps, learning_rate=2e-4, warmup=5000, clip=1.0, ema=ema, watch_every=10_000)
    return ScoreSDE(data, network, training, 1000, **more)


def cifar10() -> ScoreSDE:
    """CIFAR-10, DDPM++ cont., VP: FID 2.55 (3.93 by the flow), 3.16 bits/dim; Euler-Maruyama without corrector."""
    network = Network(128, (1, 2, 2, 2), 4, (2,), 1, dropout=0.1, variant="ddpmpp")
    return published(Data("uoft-cs/cifar10", 128, flip=True), network, 950_000, 0.9999, method="euler-maruyama")


def cifar10_subvp() -> ScoreSDE:
    """CIFAR-10, DDPM++ cont., sub-VP: FID 2.61 (3.16 by the flow), 3.02 bits/dim."""
    return replace(cifar10(), sde="sub-vp")


def cifar10_ve() -> ScoreSDE:
    """CIFAR-10, NCSN++ cont., VE: FID 2.38 at 2000 evaluations of the predictor-corrector sampler."""
    ve: dict[str, Any] = {"sde": "ve", "method": "cp", "snr": 0.16, "t_last": 1e-5}
    network = Network(128, (1, 2, 2, 2), 4, (2,), 1, dropout=0.1, variant="ncsnpp")
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
    """CIFAR-10, DDPM++ cont., VP, trained for likelihood (ScoreFlow, Song et al. 2021b, arXiv 2101.09258).

    About 2.8 bits/dim in the paper, with variational dequantization.
    """
    return replace(cifar10(), weight="likelihood")


def celeba64_ve() -> ScoreSDE:
    """A folder of CelebA at 64 x 64, NCSN++ VE with sigma_max 90 on [0, 1]; the paper reports no FID for it.

    Trained in continuous time with Fourier features; the published model has discrete noise levels, and their index as
    its time input.
    """
    ve: dict[str, Any] = {"sde": "ve", "sigma_max": 180.0, "method": "cp", "snr": 0.17, "t_last": 1e-5}
    network = Network(128, (1, 2, 2, 2), 4, (4,), 1, dropout=0.1, variant="ncsnpp")
    return published(Data("celeba", 128, size=(64, 64), flip=True), network, 1_300_000, 0.999, **ve)


def ffhq256_ve() -> ScoreSDE:
    """A folder of FFHQ at 256 x 256, NCSN++ VE with sigma_max 348 on [0, 1], 2000 steps; the paper reports no FID."""
    ve: dict[str, Any] = {"sde": "ve", "sigma_max": 696.0, "method": "cp", "snr": 0.075, "t_last": 1e-5}
    network = Network(128, (1, 1, 2, 2, 2, 2, 2), 2, (16,), 1, variant="ncsnpp-skip")
    return replace(
        published(Data("ffhq", 64, size=(256, 256), flip=True), network, 2_400_000, 0.999, **ve), sampling_steps=2000
    )


def digits() -> ScoreSDE:
    """8 x 8 digits of 17 quantization levels.

    The sampler denoises from t = 0.01, where the noise level is 0.045, less than half of a cell.
    """
    return ScoreSDE(
        **common_settings.digits(sampling_steps=50),
        time_power=1.5,
        t_last=0.01,
        sigma_min=0.04,
        sigma_max=9.0,
        tolerance=1e-3,
    )


def mnist() -> ScoreSDE:
    """28 x 28 digits of 256 quantization levels; sigma_max is the largest distance between two of them."""
    return ScoreSDE(**common_settings.mnist(), sigma_max=31.6)


def smoke() -> ScoreSDE:
    """A test of a few seconds that every part of the recipe runs."""
    return ScoreSDE(**common_settings.smoke(), tolerance=0.1)
