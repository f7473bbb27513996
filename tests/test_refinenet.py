"""The RefineNet of NCSNv2 and its blocks, for signals of any shape; networks for data in [0, 1]."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Formula
from torch import nn

from unnoise.sde import Learned, NoiseLevels, geometric_sigmas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.prediction import scaled_score
from unnoise.shared.networks import UNet
from unnoise.shared.networks.adapters import CenteredInput
from unnoise.shared.networks.refinenet import (
    ChainedPooling,
    Fusion,
    InstanceNormPlus,
    RefineNet,
    Residual,
    ResidualConvUnit,
    resized,
)
from unnoise.shared.serialization import deserialize, serialize

SHAPES = [(1, 7), (5, 12), (3, 8, 8), (5, 7, 10), (1, 5, 1), (1, 4, 3, 6)]
TIME = torch.zeros(1)


def awake(network, std=0.2):
    """The network with no parameter at a special value."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=std, generator=generator)
    return network


def drawn(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_norm_is_its_formula(eps):
    norm, x = awake(InstanceNormPlus(4, eps), 1.0).double(), drawn(2, 4, 3, 5)
    expected = torch.empty_like(x)
    for b in range(2):
        means = [float(x[b, c].sum() / 15) for c in range(4)]
        m = sum(means) / 4
        spread = sum((mean - m) ** 2 for mean in means) / 3
        for c, mean in enumerate(means):
            variance = float(((x[b, c] - mean) ** 2).sum() / 15)
            within, between = (x[b, c] - mean) / (variance + eps) ** 0.5, (mean - m) / (spread + eps) ** 0.5
            expected[b, c] = norm.gamma[c] * (within + norm.alpha[c] * between) + norm.beta[c]
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_a_fresh_norm_is_near_the_unit_scales_of_the_paper():
    torch.manual_seed(0)
    norm = InstanceNormPlus(10_000)
    for scale in (norm.alpha.detach(), norm.gamma.detach()):
        assert abs(float(scale.mean()) - 1) < 0.001
        assert abs(float(scale.std()) - 0.02) < 0.001
    assert (norm.beta == 0).all()


@pytest.mark.parametrize("size", [6, 7])
def test_a_halving_block_means_windows_of_two(size):
    block, x = awake(Residual(1, 3, 4, 1, 1e-5, halve=True, project=True)).double(), drawn(2, 3, size)
    full = block.conv2(F.elu(block.norm2(block.conv1(F.elu(block.norm1(x)))))) + block.skip(x)
    expected = torch.stack([full[..., i : i + 2].mean(-1) for i in range(0, size, 2)], dim=-1)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert block.skip.kernel_size == (1,)


@pytest.mark.parametrize("dilation", [2, 4])
def test_a_dilated_block_keeps_the_size_and_sees_farther(dilation):
    block, x = awake(Residual(1, 2, 2, dilation, 1e-5)).double(), drawn(1, 2, 41)
    for conv in (block.conv1, block.conv2):
        y = conv(x + torch.eye(41, dtype=torch.float64)[20]) - conv(x)
        assert y.abs().amax((0, 1)).nonzero().flatten().tolist() == [20 - dilation, 20, 20 + dilation]
    expected = x + block.conv2(F.elu(block.norm2(block.conv1(F.elu(block.norm1(x))))))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("before", "after"), [(3, 5), (4, 8), (1, 2), (3, 3)])
def test_resizing_keeps_the_ends(before, after):
    x = drawn(2, 3, before)
    place = torch.arange(after, dtype=torch.float64) * (before - 1) / (after - 1)
    low = place.floor().long().clamp(max=before - 1)
    high = (low + 1).clamp(max=before - 1)
    torch.testing.assert_close(
        resized(x, (after,)), torch.lerp(x[..., low], x[..., high], place - low), rtol=1e-12, atol=1e-12
    )


def test_units_and_pooling_are_their_formulas():
    unit, pool, x = awake(ResidualConvUnit(1, 2)).double(), awake(ChainedPooling(1, 2)).double(), drawn(2, 2, 9)
    torch.testing.assert_close(unit(x), x + unit.conv2(F.elu(unit.conv1(F.elu(x)))), rtol=0, atol=0)

    def highest(h):
        return torch.stack([h[..., max(i - 2, 0) : i + 3].amax(-1) for i in range(9)], dim=-1)

    h0 = F.elu(x)
    h1 = pool.convs[0](highest(h0))
    torch.testing.assert_close(pool(x), h0 + h1 + pool.convs[1](highest(h1)), rtol=1e-12, atol=1e-12)
    assert all(conv.bias is None for conv in (unit.conv1, unit.conv2, *pool.convs))


def test_fusion_sums_at_the_first_size():
    fusion, a, b = awake(Fusion(1, (2, 3), 4)).double(), drawn(2, 2, 5), drawn(2, 3, 3)
    expected = fusion.convs[0](a) + resized(fusion.convs[1](b), (5,))
    torch.testing.assert_close(fusion(a, b), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("multipliers", "dilations"), [((1, 2, 2), (1, 1, 2)), ((2, 1, 3, 4), (1, 1, 1, 2)), ((1,), (2,))]
)
def test_any_shape_and_every_parameter_counts(shape, multipliers, dilations):
    network, x = awake(RefineNet(shape, 3, multipliers, dilations)).double(), drawn(3, *shape)
    y = network(x, torch.zeros(3))
    assert y.shape == x.shape
    assert y.isfinite().all()
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], TIME), y[i : i + 1], rtol=1e-9, atol=1e-11)
    (y * drawn(*y.shape, seed=2)).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [8, 7, 5])
def test_a_network_of_more_dimensions_does_the_same_along_one(size):
    """The weights stand in the middle of each kernel along a new axis, in which the signal is constant."""
    settings = {"width": 4, "multipliers": (1, 2, 2, 2), "dilations": (1, 1, 2, 4)}
    line, x = awake(RefineNet((2, size), **settings)).double(), drawn(2, 2, size)
    expected = line(x, torch.zeros(2))
    state, shape = line.state_dict(), (2, size)
    for further in (3, 4):
        shape = (*shape, further)
        state = {k: F.pad(v[..., None], (v.shape[2] // 2,) * 2) if v.ndim > 2 else v for k, v in state.items()}
        network = RefineNet(shape, **settings).double()
        network.load_state_dict(state)
        x, expected = (h[..., None].repeat(*(1,) * h.ndim, further) for h in (x, expected))
        torch.testing.assert_close(network(x, torch.zeros(2)), expected, rtol=1e-9, atol=1e-10)


def test_stages_are_joined_in_order():
    """Sizes and channels of each stage and of each refinement of the paper's larger networks, down and back."""
    network = RefineNet((1, 32, 20), 2, (1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4))
    seen = []
    for module in (*network.stages, *reversed(network.refinements)):
        module.register_forward_hook(lambda _, inputs, y: seen.append(tuple(y.shape[1:])))
    network(torch.randn(1, 1, 32, 20), TIME)
    down = [(2, 32, 20), (4, 16, 10), (4, 8, 5), (4, 4, 3), (8, 4, 3), (8, 4, 3)]
    assert seen == [*down, (8, 4, 3), (4, 4, 3), (4, 4, 3), (4, 8, 5), (2, 16, 10), (2, 32, 20)]


def test_the_time_input_is_ignored():
    network, x = awake(RefineNet((2, 6), 4)), torch.randn(2, 2, 6)
    assert torch.equal(network(x, torch.tensor([0.0, 900.0])), network(x, torch.tensor([5.0, 1.0])))
    assert (network.conditions, network.outputs) == ((), 1)
    with pytest.raises(UsageError, match="no value for an absent label"):
        network.null("label")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    network, x = RefineNet((1, 6, 6), 4).to(dtype), torch.randn(2, 1, 6, 6).to(dtype)
    assert network(x, torch.zeros(2)).dtype == dtype
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(last, torch.zeros(2)), network(x, torch.zeros(2)))


def test_what_no_network_is_built_from():
    cases = [
        ({"shape": (8,)}, r"shape \(8,\) must be"),
        ({"shape": (1, 8), "dilations": (1, 2)}, "one of each for each stage"),
        ({"shape": (1, 8), "multipliers": (), "dilations": ()}, "one of each for each stage"),
        ({"shape": (1, 8), "width": 1}, "width=1, .* two or more channels"),
        ({"shape": (1, 8), "dilations": (1, 0, 2, 4)}, "a dilation of 1 or more"),
        ({"shape": (1, 8), "eps": 0.0}, "eps=0.0"),
    ]
    for arguments, said in cases:
        with pytest.raises(UsageError, match=said):
            RefineNet(**arguments)
    with pytest.raises(UsageError, match=r"takes \(B, 1, ...\) with 1 sizes, not \(2, 3, 8\)"):
        RefineNet((1, 8), 2)(torch.zeros(2, 3, 8), TIME)


def test_centered_input_evaluates_at_twice_the_signal_less_one():
    seen = []
    network = CenteredInput(Formula(lambda x, time: seen.append((x, time)) or 3 * x))
    x, time = torch.tensor([[0.0, 0.5, 1.0, 40.0]]), torch.tensor([7.0])
    assert torch.equal(network(x, time), torch.tensor([[-3.0, 0.0, 3.0, 237.0]]))
    assert torch.equal(seen[0][1], time)
    assert not any(
        hasattr(network, name) for name in ("conditions", "outputs", "null", "shape")
    )  # the formula has none


def test_centered_input_has_the_properties_of_its_network():
    inner = awake(UNet((1, 4, 4), 8, (1,), 1, (), classes=3, outputs=2))
    network = CenteredInput(inner)
    assert (network.conditions, network.outputs, network.shape, int(network.null("label"))) == (
        ("label",),
        2,
        (1, 4, 4),
        3,
    )
    x, time, label = torch.rand(2, 1, 4, 4), torch.tensor([1.0, 9.0]), torch.tensor([0, 2])
    assert torch.equal(network(x, time, label=label), inner(2 * x - 1, time, label))


def test_a_checkpoint_can_hold_them():
    network = RefineNet([2, 5, 4], 4, [1, 2, 2], [1, 1, 2], eps=1e-4)
    model = Learned(
        CenteredInput(awake(network)), NoiseLevels(geometric_sigmas(0.01, 50.0, 5)), scaled_score, scaled=False
    )
    again = deserialize(serialize(model))
    again.load_state_dict(model.state_dict())
    assert again.network.inner.eps == 1e-4
    x, t = torch.rand(2, 2, 5, 4), torch.tensor(0.4)
    assert torch.equal(again(x, t), model(x, t))
    sigma = float(model.corruption(t.double())[1])
    torch.testing.assert_close(model.score(x, t), network(2 * x - 1, TIME) / sigma)
