"""Score-based generative modeling through SDEs (Song et al. 2021, arXiv 2011.13456).

All data are in [-1, 1], where the paper has data in [0, 1] for VE: the sigmas of VE are doubled, which is the same
process. Data are dequantized, so that models have a likelihood. The networks are those of the papers. The time input of
DDPM++ is 1000 t, where the paper has 999 t; that of NCSN++ is the log of the doubled sigma, which only shifts the
phases of its random Fourier features. The times of a batch are stratified, where the papers draw them independently.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...sde import (
    VE,
    VP,
    Adaptive,
    CorrectorPredictor,
    EulerMaruyama,
    Langevin,
    MaximumLikelihood,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    SubVP,
    VariationalDequantization,
)
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import GaussianDenoiser
from ...shared.gaussian.dequantization import DequantizedLoss, Dequantizer
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.quantization import Quantization
from ...shared.sampler import Sampler
from ...shared.serialization import serializable
from ...shared.training import Training
from ..code_lengths import Exact
from ..evaluation import bits_per_dim
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import Context, Part, part
from ..recipe import Figure
from ..reproduce import Study, Sweep, fitted
from ..time_grids import whole
from . import settings

EVALUATIONS = (20, 50, 100, 200)


@serializable("experiments.SDESampling")
@dataclass(frozen=True)
class SDESampling(Figure):
    """Bits/dim of VP, sub-VP and VE, and Fréchet distance by evaluations for every sampler (tables 1 and 2).

    VP and sub-VP have the loss of the recipe and the t_last of its schedule; VE has stratified uniform times.
    """

    ve: VE = VE(0.02, 100.0)
    """The VE SDE, such as VE(sigma_min=0.02, sigma_max=100); its largest noise level is, by the published rule, the
    largest distance between two images (Song & Ermon 2020)."""
    snr: float = 0.1
    """Signal-to-noise ratio r of the Langevin corrector on VP and sub-VP, such as 0.1."""
    ve_snr: float = 0.16
    """Signal-to-noise ratio r of the Langevin corrector on VE, such as 0.16."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        exact = recipe.code_length
        if not isinstance(exact, Exact):
            raise UsageError(f"code_length={exact}: this figure compares exact code lengths: give Exact()")
        study = Study(recipe, folder, progress)
        sweep = Sweep(study, "SDE", "bits/dim, uniform", "bits/dim, variational", "sampler")
        for name, (of_sde, snr) in self.variants(recipe).items():
            denoiser = study.trained(of_sde, name.lower())
            bits, error = bits_per_dim(of_sde, denoiser, study.test, progress=progress)
            dequantizer = variational_dequantizer(of_sde, denoiser, study, folder / name.lower() / "dequantizer")
            measure = exact.under(denoiser, dequantizer)
            closer, _ = bits_per_dim(of_sde, denoiser, study.test, measure=measure, progress=progress)
            codes = {"bits_per_dim": bits, "standard_error": error, "bits_per_dim_variational": closer}
            for label, sampler, cost in samplers(snr, exact.tolerance):
                cells = (name, f"{bits:.3f} ± {error:.3f}", f"{closer:.3f}", label)
                built = replace(of_sde, sampler=sampler).sampler_of(denoiser)
                counts: list[int | Tensor] = [whole(denoiser.corruption)]
                if cost:
                    counts = [max(-(-n // cost), 2) for n in EVALUATIONS if n <= 10 * recipe.sampling_steps]
                for i, steps in enumerate(counts):
                    run = f"{name}, {label}" + (f", {steps} steps" if cost else "")
                    sweep.run(label, cells, built, steps, of_sde, i == len(counts) - 1, name, run, **codes)
        text = (
            f"One network and {recipe.training.steps} training steps for each SDE. Bits/dim of {len(study.test.k)} "
            "held-out images are exact up to dequantization, which is uniform as in training, or a flow that was "
            f"trained for the finished model (RK45, rtol = atol = {exact.tolerance:g}, one Rademacher probe). The "
            "Langevin corrector takes one step at each noise level, with snr "
            f"{', '.join(f'{snr:g} ({n})' for n, (_, snr) in self.variants(recipe).items())}."
        )
        return sweep.write("Score SDEs: samplers and likelihoods", text, across=5)

    def variants(self, recipe: GaussianRecipe) -> dict[str, tuple[GaussianRecipe, float]]:
        """Returns the recipes of the three SDEs, which are otherwise equal, and the corrector's r, by name."""
        t_last = getattr(recipe.schedule, "t_last", VP().t_last)
        ve = replace(recipe, schedule=self.ve, loss=replace(recipe.loss, times=Stratified()))
        return {
            "VP": (replace(recipe, schedule=VP(t_last=t_last)), self.snr),
            "sub-VP": (replace(recipe, schedule=SubVP(t_last=t_last)), self.snr),
            "VE": (ve, self.ve_snr),
        }


def samplers(snr: float, tolerance: float) -> list[tuple[str, Part[Sampler], int]]:
    """Returns the samplers of the figure: name, sampler, and network evaluations of a step, 0 if it is adaptive."""
    return [
        ("predictor-corrector", pc(snr), 2),
        ("reverse diffusion", part(ReverseDiffusion), 1),
        ("Euler-Maruyama", part(EulerMaruyama), 1),
        ("probability flow, Heun", part(ProbabilityFlow), 2),
        ("probability flow, RK45", part(ProbabilityFlow, integrator=Adaptive(tolerance, tolerance)), 0),
    ]


def pc(snr: float, both: Any = PredictorCorrector) -> Part[Sampler]:
    """Returns the predictor-corrector sampler; the published code has the order of `CorrectorPredictor`."""
    return part(both, predictor=part(ReverseDiffusion), corrector=part(Langevin, snr=snr))


def variational_dequantizer(
    recipe: GaussianRecipe, denoiser: GaussianDenoiser, study: Study, folder: Path
) -> Dequantizer:
    """Returns a variational dequantizer for a trained model, trained on the bound of its likelihood.

    Source: Song et al. 2021b, section 5.
    """
    images, data, training = study.images, recipe.data, recipe.training
    assert isinstance(data, Images)
    channels, *size = images.shape
    narrow = recipe.network.changed(width=max(recipe.network["width"] // 2, 8))
    flow = VariationalDequantization(images.quantization, narrow.built(Context(shape=(2 * channels, *size))))
    objective = DequantizedLoss(MaximumLikelihood(copy.deepcopy(denoiser).requires_grad_(False), Stratified()), flow)
    short = replace(training, steps=max(training.steps // 5, 1), cooldown=0, watch_every=training.steps)
    conditions = () if data.classes is None else ("label",)
    batches = images.batches(data.batch, Quantization.quantized, conditions=conditions, seed=data.seed)
    return fitted(objective, short, batches, folder, study.progress).dequantizer


OWN = GaussianRecipe(
    schedule=VP(),
    loss=GaussianLoss(times=Stratified()),
    sampler=pc(0.1),
    code_length=Exact(),
    dequantize=True,
    figure=SDESampling(),
)
"""Denoising score matching on the VP SDE, and a predictor-corrector sampler."""


def published(data: Images, network: Part[nn.Module], steps: int, ema: float, **more: Any) -> GaussianRecipe:
    """Returns a recipe of the paper: Adam at 2e-4, warm-up of 5000 steps, gradient norm 1, 1000 sampling steps."""
    training = Training(steps=steps, learning_rate=2e-4, warmup=5000, clip=1.0, ema=ema, watch_every=10_000)
    return replace(OWN, data=data, network=network, training=training, sampling_steps=1000, **more)


def published_ve(data: Images, network: Part[nn.Module], steps: int, sigma_max: float, snr: float) -> GaussianRecipe:
    """Returns a recipe of the paper on the VE SDE, with the published order of corrector and predictor."""
    ve = VE(0.02, sigma_max)
    own = {"schedule": ve, "sampler": pc(snr, CorrectorPredictor), "figure": SDESampling(ve, snr)}
    return published(data, network, steps, 0.999, **own)


def cifar10() -> GaussianRecipe:
    """CIFAR-10, DDPM++ cont., VP: FID 2.55 (3.93 by the flow), 3.16 bits/dim; Euler-Maruyama without corrector."""
    data, network = Images("uoft-cs/cifar10", 128, flip=True), settings.unet("ddpmpp_cifar10")
    return published(data, network, 950_000, 0.9999, sampler=part(EulerMaruyama))


def cifar10_subvp() -> GaussianRecipe:
    """CIFAR-10, DDPM++ cont., sub-VP: FID 2.61 (3.16 by the flow), 3.02 bits/dim."""
    return replace(cifar10(), schedule=SubVP())


def cifar10_ve() -> GaussianRecipe:
    """CIFAR-10, NCSN++ cont., VE: FID 2.38 at 2000 evaluations of the predictor-corrector sampler."""
    data, network = Images("uoft-cs/cifar10", 128, flip=True), settings.unet("ncsnpp_cifar10")
    return published_ve(data, network, 950_000, sigma_max=100.0, snr=0.16)


def cifar10_subvp_deep() -> GaussianRecipe:
    """CIFAR-10, DDPM++ cont. deep, sub-VP: 2.99 bits/dim, FID 2.92 by the flow, 2.41 by the SDE."""
    return replace(cifar10_subvp(), network=settings.unet("ddpmpp_cifar10", blocks=8))


def cifar10_ve_deep() -> GaussianRecipe:
    """CIFAR-10, NCSN++ cont. deep, VE: FID 2.20."""
    return replace(cifar10_ve(), network=settings.unet("ncsnpp_cifar10", blocks=8))


def cifar10_likelihood() -> GaussianRecipe:
    """CIFAR-10, DDPM++ cont., VP, trained for likelihood (ScoreFlow, Song et al. 2021b, arXiv 2101.09258).

    Times are drawn by importance sampling. About 2.8 bits/dim in the paper, with variational dequantization.
    """
    return replace(cifar10(), loss=GaussianLoss(objective=part(MaximumLikelihood), times=Stratified()))


def celeba64_ve() -> GaussianRecipe:
    """A folder of CelebA at 64 x 64, NCSN++ VE with sigma_max 90 on [0, 1]; the paper reports no FID for it.

    Trained in continuous time with Fourier features; the published model has discrete noise levels, and their index as
    its time input.
    """
    data, network = Images("celeba", 128, size=(64, 64), flip=True), settings.unet("ncsnpp_cifar10", attention=(4,))
    return published_ve(data, network, 1_300_000, sigma_max=180.0, snr=0.17)


def ffhq256_ve() -> GaussianRecipe:
    """A folder of FFHQ at 256 x 256, NCSN++ VE with sigma_max 348 on [0, 1], 2000 steps; the paper reports no FID."""
    data, network = Images("ffhq", 64, size=(256, 256), flip=True), settings.unet("ncsnpp_lsun256")
    return replace(published_ve(data, network, 2_400_000, sigma_max=696.0, snr=0.075), sampling_steps=2000)


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels.

    The sampler denoises from t = 0.01, where the noise level is 0.045, less than half of a cell.
    """
    own = settings.digits(sampling_steps=50, code_length=Exact(1e-3), figure=SDESampling(VE(0.04, 9.0)))
    return replace(OWN, **own, schedule=VP(t_last=0.01), loss=GaussianLoss(times=Stratified(1.5)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels; sigma_max is the largest distance between two of them."""
    return replace(OWN, **settings.mnist(figure=SDESampling(VE(0.02, 31.6))))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(code_length=Exact(0.1)))
