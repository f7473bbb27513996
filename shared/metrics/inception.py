"""The Inception v3 of FID, with the weights of the TensorFlow graph of 2015-12-05."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from ..errors import UsageError, shown
from ..progress import Progress, silent
from ..quantization import Quantization
from .features import Features, digest_of, in_float32, to_bytes, to_rgb
from .inception_weights import inception_weights
from .resizing import tensorflow_bilinear

SIZE = 299
"""Height and width to which images are resized."""
BATCH = 50
"""The number of images that pass through the network at a time."""
SPATIAL_CHANNELS = 7
"""The number of channels of the spatial features of sFID."""


class Convolution(nn.Module):
    """A convolution without bias, batch normalization with epsilon 1e-3, and ReLU."""

    def __init__(self, c_in: int, c_out: int, size: int | tuple[int, int] = 1, stride: int = 1, padding: str = "same"):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def average_pool(x: Tensor) -> Tensor:
    """Returns averages over 3 x 3 pixels, of those that are inside the image."""
    return avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Returns maxima over 3 x 3 pixels, of those that are inside the image."""
    return max_pool2d(x, 3, 1, 1)


def halved(x: Tensor) -> Tensor:
    """Returns maxima over 3 x 3 pixels, at every second position."""
    return max_pool2d(x, 3, 2)


class Mixed(nn.Module):
    """Branches whose outputs are concatenated; a branch is a pool, or a chain of convolutions that may end in a fork.

    Args:
        branches: names of convolutions in the order in which they are applied, with a tuple of names for a fork, whose
            outputs are concatenated; or a pool, with the name of the convolution after it or None.
        convolutions: the convolutions by name.
    """

    def __init__(
        self,
        branches: Sequence[Sequence[str | tuple[str, ...] | Callable[[Tensor], Tensor]]],
        convolutions: Mapping[str, Convolution],
    ) -> None:
        super().__init__()
        self._branches = branches
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(branch, x) for branch in self._branches], 1)

    def _branch(self, steps: Sequence[str | tuple[str, ...] | Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for step in steps:
            if isinstance(step, str):
                x = self.get_submodule(step)(x)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(name)(x) for name in step], 1)
            else:
                x = step(x)
        return x


def mixed_35(c_in: int, pooled: int) -> Mixed:
    """Returns a block of 35 x 35 positions with 5x5 and 3x3 convolutions (Mixed_5b to d)."""
    return Mixed(
        (
            ("branch1x1",),
            ("branch5x5_1", "branch5x5_2"),
            ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            (average_pool, "branch_pool"),
        ),
        {
            "branch1x1": Convolution(c_in, 64),
            "branch5x5_1": Convolution(c_in, 48),
            "branch5x5_2": Convolution(48, 64, 5),
            "branch3x3dbl_1": Convolution(c_in, 64),
            "branch3x3dbl_2": Convolution(64, 96, 3),
            "branch3x3dbl_3": Convolution(96, 96, 3),
            "branch_pool": Convolution(c_in, pooled),
        },
    )


def mixed_6a() -> Mixed:
    """Returns the block from 35 x 35 to 17 x 17 positions."""
    return Mixed(
        (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), (halved,)),
        {
            "branch3x3": Convolution(288, 384, 3, 2, "valid"),
            "branch3x3dbl_1": Convolution(288, 64),
            "branch3x3dbl_2": Convolution(64, 96, 3),
            "branch3x3dbl_3": Convolution(96, 96, 3, 2, "valid"),
        },
    )


def mixed_17(c: int) -> Mixed:
    """Returns a block of 17 x 17 positions with 1x7 and 7x1 convolutions of c channels (Mixed_6b to e)."""
    return Mixed(
        (
            ("branch1x1",),
            ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
            ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
            (average_pool, "branch_pool"),
        ),
        {
            "branch1x1": Convolution(768, 192),
            "branch7x7_1": Convolution(768, c),
            "branch7x7_2": Convolution(c, c, (1, 7)),
            "branch7x7_3": Convolution(c, 192, (7, 1)),
            "branch7x7dbl_1": Convolution(768, c),
            "branch7x7dbl_2": Convolution(c, c, (7, 1)),
            "branch7x7dbl_3": Convolution(c, c, (1, 7)),
            "branch7x7dbl_4": Convolution(c, c, (7, 1)),
            "branch7x7dbl_5": Convolution(c, 192, (1, 7)),
            "branch_pool": Convolution(768, 192),
        },
    )


def mixed_7a() -> Mixed:
    """Returns the block from 17 x 17 to 8 x 8 positions."""
    return Mixed(
        (
            ("branch3x3_1", "branch3x3_2"),
            ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
            (halved,),
        ),
        {
            "branch3x3_1": Convolution(768, 192),
            "branch3x3_2": Convolution(192, 320, 3, 2, "valid"),
            "branch7x7x3_1": Convolution(768, 192),
            "branch7x7x3_2": Convolution(192, 192, (1, 7)),
            "branch7x7x3_3": Convolution(192, 192, (7, 1)),
            "branch7x7x3_4": Convolution(192, 192, 3, 2, "valid"),
        },
    )


def mixed_8(c_in: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """Returns a block of 8 x 8 positions with forks of 1x3 and 3x1 convolutions (Mixed_7b and c)."""
    return Mixed(
        (
            ("branch1x1",),
            ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
            ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
            (pool, "branch_pool"),
        ),
        {
            "branch1x1": Convolution(c_in, 320),
            "branch3x3_1": Convolution(c_in, 384),
            "branch3x3_2a": Convolution(384, 384, (1, 3)),
            "branch3x3_2b": Convolution(384, 384, (3, 1)),
            "branch3x3dbl_1": Convolution(c_in, 448),
            "branch3x3dbl_2": Convolution(448, 384, 3),
            "branch3x3dbl_3a": Convolution(384, 384, (1, 3)),
            "branch3x3dbl_3b": Convolution(384, 384, (3, 1)),
            "branch_pool": Convolution(c_in, 192),
        },
    )


class InceptionV3(nn.Module):
    """Inception v3 (Szegedy et al. 2015) as the graph of 2015-12-05 has it, with 1008 classes.

    Names in the state dict are those of `pt_inception-2015-12-05-6726825d.pth`. It differs from the network of
    torchvision: average pools count the pixels inside the image, and the last block has a max pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, "valid")
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, "valid")
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, "valid")
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_35(192, 32), mixed_35(256, 64), mixed_35(288, 64)
        self.Mixed_6a = mixed_6a()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (mixed_17(c) for c in (128, 160, 160, 192))
        self.Mixed_7a = mixed_7a()
        self.Mixed_7b, self.Mixed_7c = mixed_8(1280, average_pool), mixed_8(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns features of images, uint8 RGB `(N, 3, H, W)`, by name.

        `64`, `192`, `768` and `2048` are averages over all positions after the first and the second max pool, after
        `Mixed_6e` and at the end, `(N, d)`; `spatial` is the 1x1 branch of `Mixed_6d`, `(N, 192, 17, 17)`, the tensor
        `mixed_6/conv` of the graph.
        """
        found = {}
        x = (tensorflow_bilinear(images, SIZE, SIZE) - 128) / 128
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        found["64"] = x.mean((2, 3))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        found["192"] = x.mean((2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        found["spatial"] = x[:, :192]
        x = self.Mixed_6e(x)
        found["768"] = x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        found["2048"] = x.mean((2, 3))
        return found


class Inception(Features):
    """The features of FID (Heusel et al. 2017): 2048 averages of the last block of Inception v3.

    Images are converted to 8 bits and RGB, and resized as in the TensorFlow graph.

    Args:
        weights: the state dict; None for the published weights, which are downloaded once.
        device: where the network runs; None for a GPU where there is one.
        progress: how to report the progress of the download.

    Raises:
        UsageError: for a state dict of another network, and as `inception_weights`.
    """

    name = "inception"
    resize = f"TensorFlow 1 bilinear to {SIZE} x {SIZE}"
    size = 2048

    def __init__(
        self,
        weights: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = None,
        progress: Progress = silent,
    ) -> None:
        state = read_weights(inception_weights(progress)) if weights is None else weights
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network_of(state).to(self.device)
        self._digest = digest_of({name: value for name, value in state.items() if "num_batches" not in name})

    @property
    def digest(self) -> str:
        return self._digest

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the 2048 features of images, float32 `(N, 2048)` on the CPU."""
        return self.with_spatial(k, quantization)[0]

    @torch.inference_mode()
    def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
        """Returns the features, and the spatial features of sFID, float32 `(N, 2023)` (Nash et al. 2021).

        These are the first 7 channels of the tensor `mixed_6/conv` at 17 x 17 positions, in the order (y, x, channel),
        as the evaluator of Dhariwal and Nichol (2021) takes them.
        """
        pooled, spatial = [], []
        for part in to_rgb(to_bytes(k, quantization)).split(BATCH):
            with in_float32():
                found = self.network(part.to(self.device))
            pooled.append(found["2048"].cpu())
            spatial.append(found["spatial"][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())
        return torch.cat(pooled), torch.cat(spatial)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits of 1008 classes without their biases, as the Inception score takes them."""
        return features.cpu() @ self.network.fc.weight.T.cpu()


def network_of(state: Mapping[str, Tensor]) -> InceptionV3:
    """Returns the network with given weights, for evaluation.

    Raises:
        UsageError: for a state dict of another network.
    """
    with torch.device("meta"):
        network = InceptionV3()
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counters | dict(state), assign=True)
    except RuntimeError as error:
        raise UsageError(f"these are not the weights of FID's Inception v3: {shown(error)}") from error
    return network.eval().requires_grad_(False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file of PyTorch, of which only tensors are read.

    Raises:
        UsageError: for a file that is not one.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of several kinds
        raise UsageError(f"{path} cannot be read ({shown(error)}): delete it, and it is fetched again") from error
