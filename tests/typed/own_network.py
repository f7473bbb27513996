"""A network of one's own under the samplers of this package: every name in here has a type."""
# pyright: reportUnknownVariableType=error, reportUnknownMemberType=error, reportUnknownArgumentType=error
# pyright: reportUnknownParameterType=error, reportMissingImports=error

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from unnoise.continuous import DDIM, DenoisingLoss, Learned, Tabulated, VariationalBound, linear_betas
from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    CategoricalDenoiser,
    ContinuousBound,
    LogLinearNoise,
    Transition,
)
from unnoise.sde import VP, EnergyDenoiser, Langevin, Potential, ProbabilityFlow, ReverseDiffusion
from unnoise.shared import (
    CorrectorPredictor,
    Inpainting,
    Loss,
    PredictorCorrector,
    Quantization,
    RePaint,
    Sampler,
    noise_level,
)
from unnoise.shared.gaussian import GaussianDenoiser, Schedule
from unnoise.shared.gaussian.inverse import DPS, Gray, Replacement


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)) * torch.cos(time / 1000)[:, None, None, None])


class Words(nn.Module):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return nn.functional.one_hot(x, 28).float()[..., :27]


denoiser = Learned(UNet(), Tabulated(linear_betas(100)))
loss: Loss = DenoisingLoss.simple(denoiser)(torch.zeros(4, 1, 8, 8))
mean: Tensor = loss.total.mean()
sampler = DDIM(denoiser)
images: Tensor = sampler(shape=(4, 1, 8, 8), steps=5)
betas: Tensor = denoiser.corruption(torch.tensor(0.5))[0]
steps: Tensor = sampler.corruption.log_snr(torch.tensor(0.5))
bits: Tensor = VariationalBound(denoiser, Quantization(17), terms=2)(images.clamp(-1, 1)).bits_per_dim(64)
moved = denoiser.on(VP())
samplers: list[Sampler] = [ProbabilityFlow(moved), PredictorCorrector(ReverseDiffusion(moved), Langevin(moved))]
again: list[Tensor] = [one(shape=(4, 1, 8, 8), steps=3) for one in samplers]
tokens = Categorical(Words(), Absorbing(27, LogLinearNoise()))
nats: Loss = ContinuousBound(tokens)(torch.zeros(2, 6, dtype=torch.int64))
text: Tensor = Ancestral(tokens)(shape=(2, 6), steps=4)


# A sampler around another one has the types of the inner one.
predictor, corrector = ReverseDiffusion(moved), Langevin(moved)
gray, colors = Gray(torch.tensor([0.3, 0.6, 0.1])), torch.zeros(4, 3, 8, 8)
assert_type(PredictorCorrector(predictor, corrector), PredictorCorrector[GaussianDenoiser, Schedule])
assert_type(PredictorCorrector(predictor, corrector).denoiser, GaussianDenoiser)
assert_type(CorrectorPredictor(predictor, corrector).corruption, Schedule)
assert_type(Inpainting(predictor, images, images > 0).denoiser, GaussianDenoiser)
assert_type(RePaint(predictor, images, images > 0).corruption, Schedule)
assert_type(Inpainting(Ancestral(tokens), text, text > 0).denoiser, CategoricalDenoiser)
assert_type(Inpainting(Ancestral(tokens), text, text > 0).corruption, Transition)
assert_type(DPS(predictor, gray, colors[:, :1]).denoiser, GaussianDenoiser)
assert_type(Replacement(predictor, gray, colors[:, :1]).corruption, Schedule)
energy = EnergyDenoiser(Potential(UNet()), VP(), time_input=noise_level)
