"""How sizes halve and double, what accompanies them, and what times become: against loops and formulas written out."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.shared.errors import UsageError
from unnoise.shared.networks import UNet
from unnoise.shared.networks.blocks import Downsample, GroupNormalization, Upsample, conv
from unnoise.shared.networks.embeddings import Fourier, Sinusoidal, TimeEmbedding
from unnoise.shared.networks.progressive import InputResidual, InputSkip, OutputResidual, OutputSkip
from unnoise.shared.networks.resampling import FIR, MEAN, SMOOTH, FilteredStridedConv
from unnoise.shared.networks.unet_variants import PLAIN, Resampled, Strided, UNetVariant

D = torch.float64
TAPS = [
    (1, 1),
    (1, 3, 3, 1),
    (1, 2, 5, 5, 2, 1),
    (5, -1),
    (1, 4, 2, 1),
    (0, 8, 5, 1, 3, -1),
]  # of dyadic shares: exact in float32
SIZES = [(1,), (2,), (3,), (8,), (1, 4), (5, 6), (2, 3, 4)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=D)


def along(row, x: Tensor, axis: int) -> Tensor:
    """A function of lists, of each row of `x` along an axis."""
    return torch.from_numpy(np.apply_along_axis(lambda r: np.array(row(list(r))), axis, x.numpy()))


def halved_row(x: list[float], taps: tuple[float, ...]) -> list[float]:
    """`y_i = sum_j k_j x_(2i + j - m/2 + 1)`, an odd row extended by its last value, with zeros beyond the ends."""
    x, m = x + x[-1:] if len(x) % 2 else x, len(taps)
    found = []
    for i in range(len(x) // 2):
        y = 0.0
        for j in range(m):
            n = 2 * i + j - m // 2 + 1
            y += taps[j] / sum(taps) * (x[n] if 0 <= n < len(x) else 0.0)
        found.append(y)
    return found


def doubled_row(y: list[float], taps: tuple[float, ...], size: int) -> list[float]:
    """`x_n = 2 sum_i k_(n - 2i + m/2 - 1) y_i`, cut to a size."""
    m, x = len(taps), []
    for n in range(size):
        places = [(i, n - 2 * i + m // 2 - 1) for i in range(len(y))]
        x.append(2 * sum(taps[j] / sum(taps) * y[i] for i, j in places if 0 <= j < m))
    return x


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("size", SIZES)
def test_filters_halve_and_double_as_their_formulas_say(taps, size):
    dims, x = len(size), drawn(2, 3, *size)
    y = x
    for axis in range(2, 2 + dims):
        y = along(lambda row: halved_row(row, taps), y, axis)
    found = FIR(taps).down(dims)(x)
    assert found.shape[2:] == tuple(math.ceil(n / 2) for n in size)
    torch.testing.assert_close(found, y)
    back = y
    for axis, n in enumerate(size, 2):
        back = along(lambda row, n=n: doubled_row(row, taps, n), back, axis)
    found = FIR(taps).up(dims)(y, size)
    assert found.shape == x.shape
    torch.testing.assert_close(found, back)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("size", [(2,), (8,), (4, 6), (2, 4, 6)])
def test_doubling_is_the_transpose_of_halving_times_two_for_each_dimension(taps, size):
    dims = len(size)
    x, y = drawn(1, 1, *size), drawn(1, 1, *(n // 2 for n in size))
    below, above = FIR(taps).down(dims)(x), FIR(taps).up(dims)(y, size)
    torch.testing.assert_close((below * y).sum(), (x * above).sum() / 2**dims)


@pytest.mark.parametrize("taps", [t for t in TAPS if t == t[::-1]])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_constant_stays_what_it_is_but_near_the_ends(taps, dims):
    x, reach = torch.full((1, 2, *(16,) * dims), 3.0), len(taps) // 2 - 1
    below = FIR(taps).down(dims)(x)
    inside = (..., *(slice(reach, 8 - reach),) * dims)
    torch.testing.assert_close(below[inside], torch.full_like(below[inside], 3.0))
    above = FIR(taps).up(dims)(x, (32,) * dims)
    inside = (..., *(slice(2 * reach, 32 - 2 * reach),) * dims)
    torch.testing.assert_close(above[inside], torch.full_like(above[inside], 3.0))
    assert bool(reach) == (not torch.allclose(below, torch.tensor(3.0)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_means_and_nearest_neighbors(dims):
    size = (4, 6, 2)[:dims]
    x, pool = drawn(2, 3, *size), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    torch.testing.assert_close(MEAN.down(dims)(x), pool(x, 2))
    torch.testing.assert_close(
        MEAN.up(dims)(x, tuple(2 * n for n in size)), F.interpolate(x, scale_factor=2, mode="nearest")
    )
    odd = tuple(2 * n - 1 for n in size)
    torch.testing.assert_close(
        MEAN.up(dims)(x, odd), F.interpolate(x, scale_factor=2, mode="nearest")[(..., *map(slice, odd))]
    )
    row = x[(..., *(0,) * dims)].reshape(2, 3, *(1,) * dims)
    torch.testing.assert_close(MEAN.down(dims)(row), row)  # of size one: the mean of it and its copy


def test_a_filter_keeps_its_taps_in_the_signals_type_and_out_of_the_weights():
    layer = SMOOTH.down(2)
    assert layer.state_dict() == {}
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert layer(x.to(dtype)).dtype == dtype
    for taps in ((1, 2, 1), (1, -1), ()):
        with pytest.raises(UsageError, match="even number of taps whose sum is not zero"):
            FIR(taps)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("size", [(1,), (2,), (7,), (8,), (4, 5), (3, 2, 4)])
def test_a_halved_convolution_is_the_filter_of_the_convolution_between_wide_zeros(taps, size):
    torch.manual_seed(0)
    dims, x = len(size), drawn(2, 2, *size)
    layer = FilteredStridedConv(dims, taps, conv(dims, 2, 3)).double()
    for axis, n in enumerate(size, 2):  # an odd size is extended by a copy of its last row
        x = torch.cat([x, x.narrow(axis, n - 1, n % 2)], dim=axis)
    margin = 2 * len(taps)  # even, so that the positions that are kept stay the same
    wide = layer.conv(F.pad(x, (margin, margin) * dims))
    y = wide.detach()
    for axis in range(2, 2 + dims):
        y = along(lambda row: halved_row(row, taps), y, axis)
    inside = (..., *(slice(margin // 2, margin // 2 + n // 2) for n in x.shape[2:]))
    torch.testing.assert_close(layer(drawn(2, 2, *size)), y[inside])


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [(1,), (2,), (7,), (8,), (4, 5), (5, 4), (3, 2, 4)])
def test_a_strided_convolution_pads_as_its_rule_says(same, size):
    """ "SAME": ceil(n / 2) outputs, what they need beyond n in all, and of that the smaller half before the start.

    Else one at each end.
    """
    torch.manual_seed(0)
    dims, x = len(size), drawn(1, 2, *size)
    layer = Downsample(dims, 2, same).double()
    weight, bias = layer.conv.weight.detach(), layer.conv.bias.detach()
    before = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) // 2 if same else 1 for n in size]
    found = layer(x)[0]
    assert found.shape[1:] == tuple(math.ceil(n / 2) for n in size)
    for place in product(*(range(n) for n in found.shape[1:])):
        y = bias.clone()
        for tap in product(range(3), repeat=dims):
            at = [2 * i + j - p for i, j, p in zip(place, tap, before, strict=True)]
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                y += weight[(..., *tap)] @ x[(0, slice(None), *at)]
        torch.testing.assert_close(found[(slice(None), *place)], y)


@pytest.mark.parametrize("size", [(1,), (7,), (8,), (4, 5)])
def test_upsampling_repeats_each_neighbor_and_convolves(size):
    torch.manual_seed(0)
    dims = len(size)
    x, layer = drawn(1, 2, *(math.ceil(n / 2) for n in size)), Upsample(dims, 2).double()
    repeated = x
    for axis, n in enumerate(size, 2):
        repeated = repeated.index_select(axis, torch.arange(n) // 2)
    torch.testing.assert_close(layer(x, None, size), layer.conv(repeated))


@pytest.mark.parametrize("cosine_first", [False, True])
@pytest.mark.parametrize(("inclusive", "width"), [(True, 8), (False, 8), (True, 2), (False, 2)])
def test_sinusoidal_features(cosine_first, inclusive, width):
    label, half = torch.tensor([0.0, 1.5, 999.0]), width // 2
    found = Sinusoidal(cosine_first, inclusive).build(width)
    assert found.features == width
    for row, u in zip(found(label), label.tolist(), strict=True):
        angles = [u * 10_000 ** (-i / max(half - (1 if inclusive else 0), 1)) for i in range(half)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        expected = cosines + sines if cosine_first else sines + cosines
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=2e-4)  # the angles are float32


def test_fourier_features():
    torch.manual_seed(0)
    waves = Fourier(scale=3.0).build(1000)
    assert waves.features == 2000
    assert abs(waves.frequencies.std() - 3.0) < 0.2
    assert "frequencies" in waves.state_dict()
    assert not list(waves.parameters())
    u, w = torch.tensor([0.3, -1.1]), waves.frequencies.double()
    angle = 2 * math.pi * u[:, None].double() * w
    torch.testing.assert_close(waves(u).double(), torch.cat([angle.sin(), angle.cos()], dim=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("encode", [Sinusoidal(), Fourier()])
def test_what_is_known_early_joins_the_features(encode):
    torch.manual_seed(0)
    time, label = TimeEmbedding(8, 12, encode), torch.tensor([0.5, 3.0])
    early, (first, _, second) = torch.randn(2, time.features), time.mlp
    h = (time.encode(label) + early) @ first.weight.T + first.bias
    torch.testing.assert_close(time(label, early), (h * h.sigmoid()) @ second.weight.T + second.bias)


def test_groups_are_at_most_and_of_at_least():
    cases = {
        GroupNormalization(): {1: 1, 3: 1, 4: 1, 6: 1, 8: 2, 12: 3, 20: 5, 96: 24, 128: 32, 192: 32, 256: 32},
        GroupNormalization(32, 1): {1: 1, 8: 8, 32: 32, 48: 16, 96: 32, 128: 32, 256: 32},
        GroupNormalization(8, 2): {2: 1, 4: 2, 16: 8, 24: 8},
    }
    for norm, counts in cases.items():
        assert {channels: norm(channels).num_groups for channels in counts} == counts
    for norm in cases:
        for channels in range(1, 300):
            groups = norm(channels).num_groups
            assert channels % groups == 0
            assert groups <= norm.max_groups
            assert channels // groups >= min(norm.min_group_size, channels)
    assert GroupNormalization(eps=1e-3)(8).eps == 1e-3


# The whole of a two-level network, written out.


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    grouped = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
    z = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + norm.eps).sqrt()
    return z.view_as(x) * norm.weight[:, None, None] + norm.bias[:, None, None]


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def convolved(layer: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=(layer.weight.shape[-1] - 1) // 2)


def block(part: nn.Module, x: Tensor, e: Tensor, variant: UNetVariant, resized=lambda h: h) -> Tensor:
    h = convolved(part.conv1, resized(silu(normed(part.norm1, x))))
    m = (silu(e) @ part.modulation.weight.T + part.modulation.bias)[..., None, None]
    if variant.adaptive:
        scale, shift = m[:, : h.shape[1]], m[:, h.shape[1] :]
        h = normed(part.norm2, h) * (1 + scale) + shift
    else:
        h = normed(part.norm2, h + m)
    x = resized(x)
    return variant.gain * (
        (x if isinstance(part.skip, nn.Identity) else convolved(part.skip, x)) + convolved(part.conv2, silu(h))
    )


def attended(part: nn.Module, x: Tensor, variant: UNetVariant, heads: int) -> Tensor:
    (b, c, *size), h = x.shape, normed(part.norm, x).flatten(2)
    q, k, v = (part.qkv.weight[:, :, 0] @ h + part.qkv.bias[:, None]).chunk(3, dim=1)
    rows = []
    for q_, k_, v_ in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        weight = (q_.transpose(1, 2) @ k_ / math.sqrt(c / heads)).softmax(dim=2)
        rows.append(v_ @ weight.transpose(1, 2))
    out = part.out.weight[:, :, 0] @ torch.cat(rows, 1) + part.out.bias[:, None]
    return variant.gain * (x + out.view(b, c, *size))


def halved(x: Tensor, f: FIR) -> Tensor:
    for axis in (2, 3):
        x = along(lambda row: halved_row(row, f.taps), x, axis)
    return x


def doubled(x: Tensor, f: FIR, size: tuple[int, int]) -> Tensor:
    for axis, n in zip((2, 3), size, strict=True):
        x = along(lambda row, n=n: doubled_row(row, f.taps, n), x, axis)
    return x


def by_hand(net: UNet, x: Tensor, time: Tensor, heads: int) -> Tensor:
    """A network of two resolutions, one block each, with attention at half size."""
    variant, (top, low), (rise, lift) = net.variant, net.down, net.up  # rise is the lower resolution of the way up
    size = tuple(x.shape[2:])
    e = net.time(time)
    resize = variant.resize
    a = convolved(net.stem, x)
    b = block(top["stages"][0][0], a, e, variant)
    if isinstance(resize, Resampled):
        assert all(isinstance(part.skip, nn.Identity) != resize.project for part in (top["shrink"], rise["grow"]))
    if isinstance(resize, Strided):
        padded = F.pad(b, (0, 1, 0, 1)) if resize.same else F.pad(b, (1, 1, 1, 1))  # even sizes
        c = F.conv2d(padded, top["shrink"].conv.weight, top["shrink"].conv.bias, stride=2)
    else:
        c = block(top["shrink"], b, e, variant, lambda h: halved(h, resize.filter))
    if isinstance(variant.progressive_input, InputSkip):
        c = c + convolved(top["enter"].conv, halved(x, variant.progressive_input.filter))
    elif variant.progressive_input is not None:
        margin = 8
        wide = F.pad(x, (margin,) * 4)
        filtered = halved(
            F.conv2d(wide, top["enter"].shrink.conv.weight, top["enter"].shrink.conv.bias, padding=1),
            variant.progressive_input.filter,
        )
        half = margin // 2
        c = variant.gain * (c + filtered[..., half : half + size[0] // 2, half : half + size[1] // 2])
    first, second = low["stages"][0]
    d = attended(second, block(first, c, e, variant), variant, heads)
    first, second, third = net.middle
    h = block(third, attended(second, block(first, d, e, variant), variant, heads), e, variant)

    for i, skip in enumerate((d, c)):
        parts = rise["stages"][i]
        h = block(parts[0], torch.cat([h, skip], 1), e, variant)
        assert len(parts) == (1 if variant.attend_once and i == 0 else 2)
        if len(parts) == 2:
            h = attended(parts[1], h, variant, heads)
    if isinstance(variant.progressive_output, OutputSkip):
        norm, _, last = rise["leave"].head
        prediction = convolved(last, silu(normed(norm, h)))
    elif variant.progressive_output is not None:
        norm, _, last = rise["leave"].enter
        stream = convolved(last, silu(normed(norm, h)))
    if isinstance(resize, Strided):
        h = convolved(rise["grow"].conv, h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    else:
        h = block(rise["grow"], h, e, variant, lambda h: doubled(h, resize.filter, size))
    for i, skip in enumerate((b, a)):
        h = block(lift["stages"][i][0], torch.cat([h, skip], 1), e, variant)
    if isinstance(variant.progressive_output, OutputResidual):
        h = variant.gain * (h + convolved(lift["leave"].conv, doubled(stream, variant.progressive_output.filter, size)))
    out = convolved(net.head[2], silu(normed(net.head[0], h)))
    if isinstance(variant.progressive_output, OutputSkip):
        out = out + doubled(prediction, variant.progressive_output.filter, size)
    return out


ODD = FIR((1, 4, 2, 1))
BY_HAND = {
    "plain": PLAIN,
    "same": replace(PLAIN, resize=Strided(same=True), adaptive=False),
    "resampled": replace(PLAIN, resize=Resampled(ODD), attend_once=True),
    "projected": replace(PLAIN, resize=Resampled(SMOOTH, project=True), gain=0.6, adaptive=False),
    "input-skip": replace(PLAIN, progressive_input=InputSkip(ODD), gain=0.6),
    "input-residual": replace(PLAIN, progressive_input=InputResidual(ODD), gain=0.6),
    "output-skip": replace(PLAIN, progressive_output=OutputSkip(ODD), gain=0.6),
    "output-residual": replace(PLAIN, progressive_output=OutputResidual(ODD), gain=0.6),
    "all": replace(
        PLAIN,
        progressive_input=InputResidual(ODD),
        progressive_output=OutputResidual(),
        gain=0.5**0.5,
        resize=Resampled(project=True),
        wide_stem=True,
        head_width=3,
    ),
}


@pytest.mark.parametrize("variant", BY_HAND.values(), ids=BY_HAND)
def test_a_network_of_two_resolutions_is_its_formula(variant):
    torch.manual_seed(0)
    net = UNet((2, 4, 6), 8, (1, 1.5), 1, (2,), heads=2, variant=variant).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x, time = drawn(2, 2, 4, 6), torch.tensor([0.5, 70.0])
    with torch.no_grad():
        torch.testing.assert_close(net(x, time), by_hand(net, x, time, 4 if variant.head_width else 2))


@pytest.mark.parametrize("size", [(6,), (5, 3)])
def test_of_three_resolutions_each_halves_the_image_of_the_one_before(size):
    """With a signal of zeros, `enter` adds what it makes of the image alone, and its image becomes the next one's."""
    torch.manual_seed(0)
    dims = len(size)
    image, filters = drawn(1, 2, *size), MEAN.down(dims).double()
    skip = UNet((2, *size), 8, (1, 2, 1), variant=replace(PLAIN, progressive_input=InputSkip(MEAN))).double()
    first, second = (level["enter"] for level in list(skip.down)[:2])
    below, h = first(image, torch.zeros(1, 8, *(1,) * dims, dtype=D))
    torch.testing.assert_close(below, filters(image))
    torch.testing.assert_close(h, first.conv(filters(image)))
    lowest, h = second(below, torch.zeros(1, 16, *(1,) * dims, dtype=D))
    torch.testing.assert_close(lowest, filters(filters(image)))
    torch.testing.assert_close(h, second.conv(lowest))
    residual = UNet(
        (2, *size), 8, (1, 2, 1), variant=replace(PLAIN, progressive_input=InputResidual(MEAN), gain=0.5)
    ).double()
    first, second = (level["enter"] for level in list(residual.down)[:2])
    signal = drawn(1, 8, *filters(image).shape[2:])
    below, h = first(image, signal)
    torch.testing.assert_close(h, 0.5 * (signal + first.shrink(image)))
    assert below is h
    assert second.shrink.conv.weight.shape[:2] == (16, 8)


def test_of_three_resolutions_each_prediction_is_added_to_the_doubled_one_below():
    torch.manual_seed(0)
    skip = UNet((2, 5, 7), 8, (1, 2, 1), variant=replace(PLAIN, progressive_output=OutputSkip(SMOOTH))).double()
    for p in skip.parameters():
        nn.init.normal_(p, std=0.2)
    first, second = (level["leave"] for level in list(skip.up)[:2])
    assert "leave" not in skip.up[2]
    low, middle = drawn(1, 8, 2, 2), drawn(1, 16, 3, 4)
    running, h = first(None, low)
    assert h is low
    torch.testing.assert_close(running, first.head(low))
    further, h = second(running, middle)
    assert h is middle
    torch.testing.assert_close(further, second.head(middle) + doubled(running.detach(), SMOOTH, (3, 4)))
    torch.testing.assert_close(skip.finish(further, (5, 7)).detach(), doubled(further.detach(), SMOOTH, (5, 7)))
