"""The augmentation of images: each transformation against a closed form, the labels, and the independence of rows."""

from __future__ import annotations

import math

import pytest
import torch

from unnoise.shared.data.augmentation import CENTER, SYM6, Augmentation, warped
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import UNet
from unnoise.shared.random import Streams

ALWAYS = Augmentation(p=1)


def images(count: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def parameters(**values: float) -> torch.Tensor:
    a = torch.zeros(1, 8)
    for name, value in values.items():
        a[0, int(name[1:])] = value
    return a


def smooth(height: int = 24, width: int = 24, angle: float = 0.0) -> torch.Tensor:
    """A smooth image, a function of the place, rotated by an angle."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return torch.exp(-(u**2) / 18 - (v - 1) ** 2 / 40)[None, None]


def test_the_filter_is_that_of_an_orthogonal_wavelet_with_six_vanishing_moments() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    for shift in range(0, 12, 2):
        torch.testing.assert_close(float(taps[shift:] @ taps[: 12 - shift]), float(shift == 0), atol=1e-9, rtol=0)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2))
    signs = (-1.0) ** torch.arange(12)
    for power in range(6):
        assert float((signs * taps * (torch.arange(12) - CENTER) ** power).sum()) == pytest.approx(0, abs=1e-5)


def test_flips_are_exact() -> None:
    x = images(1)
    assert torch.equal(ALWAYS.transformed(x, parameters(a0=1)), x.flip(-1))
    assert torch.equal(ALWAYS.transformed(x, parameters(a1=1)), x.flip(-2))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-5, 4)])
def test_a_shift_by_whole_pixels_moves_the_image_with_a_reflected_border(right: int, down: int) -> None:
    x = images(1)
    found = ALWAYS.transformed(x, parameters(a6=8 * right / 16, a7=8 * down / 12))
    padded = torch.nn.functional.pad(x, (8, 8, 8, 8), mode="reflect")
    expected = padded[..., 8 - down : 20 - down, 8 - right : 24 - right]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_reflected_image_continues_beyond_one_reflection() -> None:
    x = images(1)
    period = 2 * 16 - 2
    torch.testing.assert_close(ALWAYS.transformed(x, parameters(a6=8 * period / 16)), x, atol=1e-4, rtol=0)


def test_scaling_rotation_and_anisotropy_move_a_smooth_image_as_its_formula() -> None:
    y, x = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(24) - 11.5, indexing="ij")

    def blob(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(u**2) / 18 - (v - 1) ** 2 / 40)[None, None]

    s = 2**0.2
    cases = {
        "scaling": (parameters(a2=1), blob(x / s, y / s)),
        "rotation": (parameters(a3=math.pi / 2), blob(y, -x)),
        "small rotation": (parameters(a3=0.4), smooth(angle=0.4)),
        "anisotropy": (parameters(a5=1), blob(x / s, y * s)),
        "anisotropy across": (parameters(a4=math.pi / 2, a5=1), blob(x * s, y / s)),
        "half a pixel": (parameters(a6=8 * 0.5 / 24), blob(x - 0.5, y)),
    }
    for name, (a, expected) in cases.items():
        found = ALWAYS.transformed(blob(x, y), a)
        inner = (slice(None), slice(None), slice(6, 18), slice(6, 18))
        assert (found - expected)[inner].abs().max() < 0.02, name


def test_the_order_is_scaling_rotation_anisotropy_translation() -> None:
    a = parameters(a2=0.7, a3=0.5, a4=1.1, a5=-0.8, a6=0.3, a7=-0.4)
    inverse = ALWAYS.inverse(a, (24, 24))[0].double()
    s, r = 2 ** (0.2 * 0.7), 2 ** (0.2 * -0.8)

    def turn(angle: float) -> torch.Tensor:
        c, n = math.cos(angle), math.sin(angle)
        return torch.tensor([[c, -n], [n, c]], dtype=torch.float64)

    squeeze = turn(1.1) @ torch.diag(torch.tensor([r, 1 / r], dtype=torch.float64)) @ turn(-1.1)
    point = torch.tensor([2.0, -3.0], dtype=torch.float64)
    moved = squeeze @ turn(0.5) @ (s * point) + torch.tensor([3 * 0.3, 3 * -0.4], dtype=torch.float64)
    back = inverse[:, :2] @ moved + inverse[:, 2]
    torch.testing.assert_close(back, point, atol=1e-5, rtol=0)


def test_without_transformations_images_stay_and_labels_are_zero_but_for_the_horizontal_flip() -> None:
    x = images(64)
    found, labels = Augmentation(p=0)(x, Streams(0, range(64)))
    assert labels.shape == (64, Augmentation.labels_size)
    assert labels[:, 1:].abs().max() == 0
    flip = labels[:, 0] == 1
    assert 16 < int(flip.sum()) < 48
    assert torch.equal(found[flip], x[flip].flip(-1))
    assert torch.equal(found[~flip], x[~flip])


def test_labels_are_those_of_the_table() -> None:
    a = torch.tensor([[1.0, 1.0, 0.3, 0.5, 1.1, -0.8, 0.2, -0.4]])
    expected = [1, 1, 0.3, math.cos(0.5) - 1, math.sin(0.5), -0.8 * math.cos(1.1), -0.8 * math.sin(1.1), 0.2, -0.4]
    torch.testing.assert_close(ALWAYS.labels(a)[0], torch.tensor(expected))


def test_parameters_have_their_distributions() -> None:
    a = Augmentation(p=0.25).draw(40_000, Streams(3, range(40_000))).double()
    error = 4 * math.sqrt(0.25 * 0.75 / 40_000)
    for column in (2, 3, 4, 5, 6, 7):
        assert float((a[:, column] != 0).double().mean()) == pytest.approx(0.25, abs=error)
    assert float(a[:, 0].mean()) == pytest.approx(0.5, abs=0.011)
    assert float(a[:, 1].mean()) == pytest.approx(0.125, abs=0.007)
    for column in (2, 5, 6, 7):
        drawn = a[a[:, column] != 0, column]
        assert float(drawn.mean()) == pytest.approx(0, abs=0.04)
        assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    for column in (3, 4):
        drawn = a[a[:, column] != 0, column]
        assert float(drawn.std()) == pytest.approx(math.pi / math.sqrt(3), abs=0.04)
        assert drawn.abs().max() <= math.pi
    assert torch.equal(a[:, 4] != 0, a[:, 5] != 0)  # angle and strength are drawn together, and both shifts
    assert torch.equal(a[:, 6] != 0, a[:, 7] != 0)
    pairs = torch.corrcoef(a[(a[:, 6] != 0)][:, 6:].T)
    assert abs(float(pairs[0, 1])) < 0.04


def test_a_row_depends_on_its_own_number_alone() -> None:
    x = images(12)
    whole, labels = ALWAYS(x, Streams(5, range(12)))
    part, own = ALWAYS(x[7:9], Streams(5, range(7, 9)))
    assert torch.equal(part, whole[7:9])
    assert torch.equal(own, labels[7:9])


def test_one_pixel_and_thin_images() -> None:
    for height, width in ((1, 1), (1, 7), (2, 2)):
        x = images(2, height, width)
        assert ALWAYS(x, Streams(0, range(2)))[0].isfinite().all()
        identity = torch.eye(2, 3).expand(2, -1, -1)
        torch.testing.assert_close(warped(x, identity), x, atol=2e-5, rtol=0)


def test_labels_change_what_a_network_returns_and_zeros_are_no_labels() -> None:
    torch.manual_seed(0)
    network = UNet((3, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), augment=Augmentation.labels_size)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, time = images(2, 8, 8), torch.tensor([3.0, 400.0])
    _, labels = ALWAYS(x, Streams(0, range(2)))
    with torch.no_grad():
        plain = network(x, time)
        assert torch.equal(plain, network(x, time, augment=torch.zeros(2, 9)))
        assert not torch.allclose(plain, network(x, time, augment=labels))


def test_what_cannot_be_transformed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"p=1.5: give a probability"):
        Augmentation(p=1.5)
    with pytest.raises(UsageError, match=r"torch.int64 of shape \(2, 3, 4, 4\): give real-valued images"):
        Augmentation()(torch.zeros(2, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match="scale=0, anisotropy=1: give positive factors"):
        Augmentation(scale=0, anisotropy=1)
