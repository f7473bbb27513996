"""The networks that the suite and the figures on a GPU compare: this package's U-Net and other libraries'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from unnoise.shared.networks import UNet
from unnoise.shared.networks.unet_variants import UNetVariant

Call = Callable[[Tensor, Tensor], Tensor]
M = TypeVar("M", bound=nn.Module)

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}
"""Operations of attention that torch's counter does not count on a CPU."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the networks and of the batch."""

    rounds: int = 9
    """Measured turns of each contender on a GPU."""
    batch: int = 16
    """Images in a batch."""
    size: int = 32
    """Height and width of the images, in pixels."""
    width: int = 64
    """Number of channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channel multiplier of each resolution; the second resolution has attention."""
    blocks: int = 2
    """Residual blocks for each resolution."""


@dataclass(frozen=True)
class Contender:
    """A network, with the function `(x, time) -> prediction` that calls it."""

    name: str
    network: nn.Module
    call: Call

    def forward(self, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        """Returns a function that runs one evaluation without gradients."""

        def work() -> None:
            with torch.no_grad(), precision(x.device, dtype):
                self.call(x, t)

        return work

    def training(self, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        """Returns a function that runs forward, backward and a step of Adam."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5, fused=True)

        def work() -> None:
            with precision(x.device, dtype):
                y = self.call(x, t)
            (y.float() - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return work

    def flops(self, x: Tensor, t: Tensor) -> float:
        """Returns the floating-point operations of one evaluation."""
        return counted(self.forward(x, t))


def precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Returns the autocast context in which the trainer runs a network."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def counted(work: Callable[[], None]) -> float:
    """Returns the floating-point operations of a function; a product and a sum count as two."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work()
    return float(counter.get_total_flops())


def ours(name: str, variant: UNetVariant, settings: Settings, dropout: float = 0.0) -> Contender:
    """Returns this package's U-Net of the benchmark's size."""
    torch.manual_seed(0)
    shape = (3, settings.size, settings.size)
    network = UNet(shape, settings.width, settings.multipliers, settings.blocks, (2,), dropout=dropout, variant=variant)
    return Contender(name, network, network)


def channels_last(network: M) -> M:
    """Returns the network with its weights in the memory format "channels last"."""
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def diffusers_unet(settings: Settings, dropout: float = 0.0) -> Contender:
    """Returns the network of diffusers with the architecture of `DDPM`."""
    from diffusers.models.unets.unet_2d import UNet2DModel

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
    """Returns the network of denoising-diffusion-pytorch.

    It has linear attention where this package's U-Net has no attention, so that the two are compared by time for each
    operation.
    """
    from denoising_diffusion_pytorch import Unet  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    attends = tuple(i == 1 for i in range(len(settings.multipliers)))
    network = Unet(dim=settings.width, dim_mults=settings.multipliers, full_attn=attends)
    return Contender("denoising-diffusion-pytorch Unet", network, network)


def work_of(c: Contender, what: str, x: Tensor, t: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Returns the contender's function for "forward" or "training step"."""
    return c.forward(x, t, dtype) if what == "forward" else c.training(x, t, dtype)


def batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns random images and time inputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator), torch.rand(count, generator=generator) * 999


def parameters(c: Contender) -> int:
    """Returns the number of parameters of the network."""
    return sum(p.numel() for p in c.network.parameters())
