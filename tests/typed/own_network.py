"""A network of one's own under the samplers of this package: every name in here has a type."""

import torch
from torch import Tensor, nn

from unnoise.continuous import DDIM, DenoisingLoss, Learned, Tabulated, VariationalBound, linear_betas
from unnoise.discrete import Absorbing, Ancestral, Categorical, ContinuousBound, LogLinearNoise
from unnoise.sde import VP, Langevin, PredictorCorrector, ProbabilityFlow, ReverseDiffusion
from unnoise.shared.objective import Loss
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import Sampler


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
