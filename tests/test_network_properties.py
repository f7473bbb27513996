"""Properties of every U-Net and encoder, whatever its sizes, variant and conditions."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unnoise.shared.errors import UsageError
from unnoise.shared.networks import CaptionEncoder, Encoder, UNet, unet_variants
from unnoise.shared.networks.blocks import GroupNormalization
from unnoise.shared.networks.embeddings import Fourier, Sinusoidal
from unnoise.shared.networks.progressive import InputResidual, InputSkip, OutputResidual, OutputSkip
from unnoise.shared.networks.resampling import FIR, MEAN, SMOOTH
from unnoise.shared.networks.unet_variants import PLAIN, Resampled, Strided, UNetVariant
from unnoise.shared.serialization import deserialize, serialize

PAPERS = {name: value for name, value in vars(unet_variants).items() if isinstance(value, UNetVariant)}
NARROW = FIR((3, 1))
VARIATIONS = {
    "norm": replace(PLAIN, norm=GroupNormalization(2, 1, 1e-3)),
    "shifted": replace(PLAIN, adaptive=False),
    "same": replace(PLAIN, resize=Strided(same=True)),
    "mean": replace(PLAIN, resize=Resampled(MEAN)),
    "mean-projected": replace(PLAIN, resize=Resampled(MEAN, project=True)),
    "smooth": replace(PLAIN, resize=Resampled(SMOOTH)),
    "asymmetric": replace(PLAIN, resize=Resampled(NARROW, project=True)),
    "gain": replace(PLAIN, gain=0.3),
    "attend-once": replace(PLAIN, attend_once=True),
    "head-width": replace(PLAIN, head_width=4),
    "sines": replace(PLAIN, time=Sinusoidal(cosine_first=True, inclusive=False)),
    "fourier": replace(PLAIN, time=Fourier(scale=0.5)),
    "early": replace(PLAIN, early_label=True, time=Fourier(scale=2.0)),
    "wide-stem": replace(PLAIN, wide_stem=True),
    "enters-skip": replace(PLAIN, progressive_input=InputSkip()),
    "enters-residual": replace(PLAIN, progressive_input=InputResidual(NARROW)),
    "leaves-skip": replace(PLAIN, progressive_output=OutputSkip(MEAN)),
    "leaves-residual": replace(PLAIN, progressive_output=OutputResidual()),
    "skip-residual": replace(
        PLAIN, progressive_input=InputSkip(MEAN), progressive_output=OutputResidual(), gain=0.5, resize=Resampled()
    ),
    "residual-skip": replace(
        PLAIN, progressive_input=InputResidual(), progressive_output=OutputSkip(), wide_stem=True, early_label=True
    ),
}
VARIANTS = PAPERS | VARIATIONS
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
MULTIPLIERS = [(1,), (2,), (1, 2), (2, 1), (0.5, 1), (1.5, 1), (1, 1, 2), (0.5, 1, 1), (2, 1, 0.5)]


def drawn(examples: int) -> Callable[[Callable], Callable]:
    """Runs a test `(variant, data)` for every variant, with `examples` draws for each, the same in every run."""
    rules = settings(deadline=None, database=None, max_examples=examples, suppress_health_check=list(HealthCheck))

    def mark(test: Callable) -> Callable:
        @pytest.mark.parametrize("name", VARIANTS)
        def run(name: str) -> None:
            seed(list(VARIANTS).index(name))(rules(given(data=st.data())(lambda data: test(VARIANTS[name], data))))()

        return run

    return mark


def awake(network: nn.Module, std: float = 0.2) -> nn.Module:
    """The network with every parameter drawn, so that no path stays closed."""
    seeded = torch.Generator().manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=std, generator=seeded)
    return network.eval()


@st.composite
def sizes(draw) -> tuple[int, ...]:
    """1 to 3 sizes, of few points in all."""
    dims = draw(st.integers(1, 3))
    return tuple(draw(st.integers(1, (11, 11, 5)[dims - 1])) for _ in range(dims))


@st.composite
def unets(draw, variant: UNetVariant) -> tuple[UNet, tuple[int, ...]]:
    """A network of a variant, and the sizes of a signal for it, which may differ from those that it was built with."""
    categories = draw(st.sampled_from([None, None, 3]))
    size = draw(sizes())
    other = size if draw(st.booleans()) else tuple(n + 3 for n in size)
    multipliers = draw(st.sampled_from(MULTIPLIERS))
    network = UNet(
        (draw(st.integers(1, 5)), *other),
        8,
        multipliers,
        draw(st.sampled_from([1, 1, 2])),
        draw(st.sampled_from([(), (1,), (2,), (2, 4)[: len(multipliers) - 1]])),
        heads=draw(st.sampled_from([1, 2, 4])),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        classes=draw(st.sampled_from([None, 3])),
        categories=categories,
        outputs=draw(st.integers(1, 2)) if categories is None else 1,
        vector=draw(st.sampled_from([None, 2])),
        image=draw(st.integers(0, 2)) if categories is None else 0,
        tokens=CaptionEncoder(5, 3, 4, 1, 2) if draw(st.booleans()) else None,
        logits=None if categories is None else draw(st.sampled_from([None, 2])),
        variant=variant,
        augment=draw(st.sampled_from([None, 2])),
        null_label=draw(st.booleans()),
    )
    return awake(network), size


def signal(
    network: UNet, size: tuple[int, ...], batch: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """x, time, and every condition that the network takes."""
    seeded = torch.Generator().manual_seed(1)
    shape = (batch, network.shape[0], *size)
    if network.categories is None:
        x = torch.randn(shape, generator=seeded, dtype=dtype)
    else:
        x = torch.randint(network.categories, shape, generator=seeded)
    time = 20 * torch.rand(batch, generator=seeded, dtype=dtype)
    smaller = (max(n - 1, 1) for n in size)
    given = {
        "label": torch.arange(batch) % (network.classes or 1),
        "vector": torch.randn(batch, network.vector or 1, generator=seeded, dtype=dtype),
        "image": torch.randn(batch, network.image, *smaller, generator=seeded, dtype=dtype),
        "tokens": torch.randint(-1, 5, (batch, 2), generator=seeded),
        "augment": torch.randn(batch, network.augment or 1, generator=seeded, dtype=dtype),
    }
    return x, time, {name: given[name] for name in network.conditions}


def rows_of_one(network: nn.Module, size: tuple[int, ...], i: int) -> list[int]:
    """Row i alone.

    Twice where a group of the lowest resolution has a single value, which PyTorch refuses to normalize for one row.
    """
    refused = network.variant.norm.min_group_size == 1 and max(size) <= 2 ** (len(network.multipliers) - 1)
    return [i, i] if refused else [i]


def close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> bool:
    return bool((actual - expected).abs().max() <= relative * expected.abs().max())


@drawn(2)
def test_the_signal_comes_back_in_its_shape_and_every_parameter_has_a_finite_gradient(variant, data):
    network, size = data.draw(unets(variant))
    x, time, conditions = signal(network, size)
    y = network(x, time, **conditions)
    channels = network.shape[0]
    if network.categories is None:
        assert y.shape == (3, network.outputs * channels, *size)
    else:
        assert y.shape == (3, channels, *size, network.logits or network.categories)
    if network.vector is not None:
        y = y + network(x, time, **{**conditions, "vector": None})
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, f"nothing reads {name}"
        assert p.grad.isfinite().all(), name
    assert network.stem.weight.grad.count_nonzero()
    assert network.head[-1].weight.grad.count_nonzero()


@drawn(2)
def test_each_row_is_what_it_is_alone_and_the_description_builds_the_same_network(variant, data):
    network, size = data.draw(unets(variant))
    network.double()
    x, time, conditions = signal(network, size, dtype=torch.float64)
    with torch.no_grad():
        y = network(x, time, **conditions)
        assert y.dtype == torch.float64
        for i in range(3):
            rows = rows_of_one(network, size, i)
            alone = network(x[rows], time[rows], **{name: c[rows] for name, c in conditions.items()})
            assert close(alone[0], y[i])
    description = serialize(network)
    again = deserialize(json.loads(json.dumps(description))).double().eval()
    assert serialize(again) == description
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x, time, **conditions), y)
        assert torch.equal(network(x, time, **conditions), y)
    with torch.device("meta"):
        empty = deserialize(description)
    assert [(k, v.shape) for k, v in empty.state_dict().items()] == [
        (k, v.shape) for k, v in network.state_dict().items()
    ]
    assert all(v.is_meta for v in empty.state_dict().values())


def full(
    variant: UNetVariant, size: tuple[int, ...] = (5, 6), multipliers: tuple[float, ...] = (1, 1, 2), **options
) -> UNet:
    """A network with everything, whose norms leave the channels of a group their means."""
    options = {
        "classes": 3,
        "vector": 2,
        "image": 1,
        "tokens": CaptionEncoder(5, 3, 4, 1, 2),
        "augment": 2,
        "null_label": False,
        **options,
    }
    return awake(
        UNet(
            (2, *size),
            8,
            multipliers,
            1,
            (2,),
            heads=2,
            variant=replace(variant, norm=GroupNormalization(2, 1)),
            **options,
        )
    )


@every_variant
@pytest.mark.parametrize("multipliers", [(0.5, 1, 2), (2,)])
def test_every_parameter_moves_the_output(variant, multipliers):
    network = full(variant, multipliers=multipliers)
    x, time, conditions = signal(network, (5, 6))
    weight = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    ((network(x, time, **conditions) + network(x, time, **{**conditions, "vector": None})) * weight).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6] == []


@every_variant
def test_a_fresh_network_predicts_zero_and_no_row_depends_on_another(variant):
    torch.manual_seed(0)
    network = UNet((2, 5, 6), 8, (1, 2, 2), 1, (2,), variant=variant)
    x, time, _ = signal(network, (5, 6))
    assert not network(x, time).count_nonzero()
    awake(network)
    further = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(further, time)[1].square().sum(), further)
    assert gradient[1].count_nonzero()
    assert not gradient[[0, 2]].count_nonzero()


@every_variant
@pytest.mark.parametrize("size", [(5, 8), (2, 3, 5)])
def test_the_axes_of_a_signal_are_alike(variant, size):
    """The axes of the signal and of every kernel in another order give the prediction in that order."""
    network = full(variant, size).double()
    x, time, conditions = signal(network, size, dtype=torch.float64)
    y, state, dims = network(x, time, **conditions), deepcopy(network.state_dict()), len(size)
    for order in list(permutations(range(dims)))[1:3]:  # exchanges of two neighbors, which generate all

        def turned(a, order=order):
            return a.permute(0, 1, *(2 + i for i in order))

        network.load_state_dict({k: turned(v) if v.ndim == 2 + dims else v for k, v in state.items()})
        conditions["image"] = turned(signal(network, size, dtype=torch.float64)[2]["image"])
        assert close(network(turned(x), time, **conditions), turned(y), 1e-9)


def zeros_beyond(variant: UNetVariant) -> bool:
    """Whether filters of the variant mix an axis of size one with what lies beyond it."""
    filters = [
        getattr(part, "filter", MEAN)
        for part in (variant.resize, variant.progressive_input, variant.progressive_output)
    ]
    return any(f != MEAN for f in filters) or isinstance(variant.progressive_input, InputResidual)


@pytest.mark.parametrize("variant", [s for s in VARIANTS.values() if not zeros_beyond(s)])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_signal_of_size_one_along_an_axis_is_one_without_it(variant, dims):
    size = (5, 6)[:dims]
    flat = full(variant, size, (1, 2), image=0).double()
    deep = full(variant, (*size, 1), (1, 2), image=0).double()
    state = deep.state_dict()
    middle = {
        k: nn.functional.pad(v[..., None], (1, 1)) if state[k].shape == (*v.shape, 3) else v
        for k, v in flat.state_dict().items()
    }
    deep.load_state_dict({k: v.view_as(state[k]) for k, v in middle.items()})
    x, time, conditions = signal(flat, size, dtype=torch.float64)
    assert close(deep(x[..., None], time, **conditions)[..., 0], flat(x, time, **conditions), 1e-9)


@pytest.mark.parametrize("resize", [Strided(), Resampled()])
def test_dropout_is_for_training(resize):
    network = full(replace(PLAIN, resize=resize), dropout=0.5)
    x, time, conditions = signal(network, (5, 6))
    assert torch.equal(network(x, time, **conditions), network(x, time, **conditions))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(x, time, **conditions), network(x, time, **conditions))


@pytest.mark.parametrize("field", ["progressive_input", "progressive_output"])
def test_what_halves_the_image_has_its_own_filter(field):
    kinds = {"progressive_input": (InputSkip, InputResidual), "progressive_output": (OutputSkip, OutputResidual)}[field]
    for kind in kinds:
        smooth, mean = (full(replace(PLAIN, **{field: kind(f)})) for f in (SMOOTH, MEAN))
        x, time, conditions = signal(smooth, (5, 6))
        mean.load_state_dict(smooth.state_dict())
        assert not close(smooth(x, time, **conditions), mean(x, time, **conditions), 1e-3)


@pytest.mark.parametrize("make", [UNet, Encoder])
def test_a_stem_is_of_the_width_and_a_wide_one_of_the_first_resolution(make):
    for wide, channels in ((False, 8), (True, 4)):
        network = make((1, 8), width=8, multipliers=(0.5, 1), variant=replace(PLAIN, wide_stem=wide))
        assert network.stem.out_channels == channels


def test_a_head_width_tells_the_number_of_heads():
    variant = replace(PLAIN, head_width=3)
    options = {"width": 8, "multipliers": (0.25, 1.5, 3), "attention": (1, 2), "heads": 5, "variant": variant}
    for network in (UNet((1, 8), **options), Encoder((1, 8), positional=True, **options)):
        layers = [m for m in network.modules() if hasattr(m, "qkv")]
        assert {(m.norm.num_channels, m.heads) for m in layers} == {(2, 1), (12, 4), (24, 8)}
    assert network.pool in layers


def test_a_gain_is_the_factor_of_every_sum():
    """Without branches, and with one stream alone, a signal shrinks by the gain for each block and each attention that
    it passes.
    """
    gain = 0.5
    network = UNet((2, 5), 8, (1,), 2, (1,), variant=replace(PLAIN, gain=gain))
    h = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    for stage in (*network.down[0]["stages"], network.middle):
        for part in stage:
            assert torch.equal(part(h, torch.zeros(2, 32) if hasattr(part, "modulation") else None), gain * h)


@drawn(2)
def test_encoders_have_these_properties_too(variant, data):
    size, positional = data.draw(sizes()), data.draw(st.booleans())
    multipliers = data.draw(st.sampled_from(MULTIPLIERS))
    shape, attention = (data.draw(st.integers(1, 4)), *size), data.draw(st.sampled_from([(), (1,), (2,)]))
    network = Encoder(
        shape, 3, 8, multipliers, 1, attention, data.draw(st.sampled_from([1, 2, 4])), 0.5, variant, positional
    )
    awake(network)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.0, 3.0, 900.0])
    y = network(x, time)
    assert y.shape == (3, 3)
    assert torch.equal(network(x, time), y)
    (y * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, f"nothing reads {name}"
        assert p.grad.isfinite().all(), name
    description = serialize(network)
    again = deserialize(json.loads(json.dumps(description))).double().eval()
    assert serialize(again) == description
    again.load_state_dict(network.state_dict())
    x, time = x.double(), time.double()
    z = again(x, time)
    assert close(y, z, 1e-2)  # float32 against float64
    for i in range(3):
        rows = rows_of_one(network, size, i)
        assert close(again(x[rows], time[rows])[0], z[i])
    with torch.device("meta"):
        empty = deserialize(description)
    assert [(k, v.shape) for k, v in empty.state_dict().items()] == [
        (k, v.shape) for k, v in network.state_dict().items()
    ]


@every_variant
@pytest.mark.parametrize("positional", [False, True])
def test_every_parameter_of_an_encoder_moves_its_output(variant, positional):
    network = awake(
        Encoder((2, 5, 6), 3, 8, (1, 2), 1, (2,), 2, 0.0, replace(variant, norm=GroupNormalization(2, 1)), positional)
    )
    x = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(1))
    network(x, torch.tensor([0.5, 3.0, 9.0])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6] == []


def test_a_positional_encoder_is_of_its_own_size_alone():
    network = Encoder((1, 5, 7), 3, 8, (1, 2), positional=True)
    assert network.pool.positions.shape == (16, 3 * 4 + 1)
    with pytest.raises(UsageError, match="pools 12 positions, not 16"):
        network(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    Encoder((1, 5, 7), 3, 8, (1, 2))(torch.zeros(1, 1, 7, 8), torch.zeros(1))
