"""Networks for signals of any shape, and the data that feed them."""

import json

import pytest
import torch
import torch.nn.functional as F

from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP, CaptionEncoder, Encoder, UNet
from unnoise.shared.networks.blocks import AttentionPool, SelfAttention, zeroed
from unnoise.shared.networks.classifier import train_classifier
from unnoise.shared.networks.embeddings import sinusoidal
from unnoise.shared.serialization import deserialize, serialize


def awake(network, std=0.1):
    """The network with no parameter at zero, so that every path reaches the output."""
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=std)
    return network


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (5, 7, 9), (2, 13), (1, 4, 6, 5)])
@pytest.mark.parametrize("categories", [None, 4])
def test_unet_takes_any_shape(shape, categories):
    network = awake(UNet(shape, 8, (1, 2), 1, (2,), heads=2, classes=3, categories=categories))
    x = torch.randn(2, *shape) if categories is None else torch.randint(0, categories, (2, *shape))
    y = network(x, torch.tensor([1.0, 900.0]), torch.tensor([0, 2]))
    assert y.shape == (2, *shape) + (() if categories is None else (categories,))
    assert torch.isfinite(y).all()
    other_time = network(x, torch.tensor([1.0, 100.0]), torch.tensor([0, 2]))
    other_label = network(x, torch.tensor([1.0, 900.0]), torch.tensor([0, 1]))
    assert torch.equal(y[0], other_time[0])
    assert torch.equal(y[0], other_label[0])
    assert not torch.allclose(y[1], other_time[1])
    assert not torch.allclose(y[1], other_label[1])
    assert not torch.allclose(network(x, torch.tensor([1.0, 900.0])), y)  # no label is the null class


def test_unet_sees_every_level_of_its_own_pixel():
    """Channels and categories must not be mixed up between the stem and the logits."""
    network = awake(UNet((2, 4), 8, (1,), 1, (), categories=3))
    x = torch.zeros(1, 2, 4, dtype=torch.int64)
    base = network(x, torch.zeros(1))
    changes = []
    for channel in range(2):
        for level in (1, 2):
            y = x.clone()
            y[0, channel, 0] = level
            changes.append(network(y, torch.zeros(1)) - base)
    assert all(not torch.allclose(a, b) for i, a in enumerate(changes) for b in changes[:i])


def test_wrong_input_is_refused_in_one_line():
    network = UNet((1, 8, 8), 8, (1,), 1, ())
    with pytest.raises(UsageError, match=r"takes \(B, 1, ...\) with 2 sizes, not \(2, 3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UsageError, match="without classes"):
        network(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"\(8,\) must be \(channels, \*size\)"):
        UNet((8,))
    with pytest.raises(UsageError, match="8 channels cannot be split over 3 heads"):
        SelfAttention(8, 3)
    with pytest.raises(UsageError, match="outputs=2 are for real-valued signals: .* without categories=4"):
        UNet((1, 8, 8), categories=4, outputs=2)
    with pytest.raises(UsageError, match="outputs=0, .*: each must be 1 or more"):
        UNet((1, 8, 8), outputs=0)


def test_a_fresh_unet_is_zero_and_a_residual_block_the_identity():
    torch.manual_seed(0)
    network = UNet((1, 8, 8), 8, (1, 2), 1, (2,))
    assert (network(torch.randn(2, 1, 8, 8), torch.rand(2)) == 0).all()
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(SelfAttention(8, 2)(x), x)


def test_attention_is_softmax_attention():
    layer = awake(SelfAttention(4, 2))
    x = torch.randn(1, 4, 3)
    h = layer.norm(x)
    q, k, v = layer.qkv(h).view(3, 2, 2, 3)
    heads = [torch.softmax(q[i].T @ k[i] / 2**0.5, dim=-1) @ v[i].T for i in range(2)]
    expected = x + layer.out(torch.cat([h.T for h in heads])[None])
    torch.testing.assert_close(layer(x), expected)


def test_sinusoidal_embedding_is_that_of_ddpm():
    e = sinusoidal(torch.tensor([3.0]), 6)
    rates = torch.tensor([1.0, 0.01, 0.0001])
    torch.testing.assert_close(e[0], torch.cat([(3 * rates).sin(), (3 * rates).cos()]))


@pytest.mark.parametrize("sizes", [(0, 8, 1), (2, 0, 1), (2, 8, -1)])
def test_mlp_of_no_size_is_refused(sizes):
    with pytest.raises(UsageError, match="give sizes of 1 or more, depth 0 or more"):
        MLP(*sizes)


def test_mlp_and_classifier_learn():
    torch.manual_seed(0)
    assert MLP(3)(torch.randn(5, 3), torch.rand(5)).shape == (5, 3)
    label = torch.arange(200) % 2
    x = torch.rand(200, 1, 8, 8) * 0.2 + label[:, None, None, None] * 0.5
    model = train_classifier(x, label, 2, steps=40, batch=32)
    assert (model(x).argmax(1) == label).float().mean() > 0.95
    assert torch.equal(train_classifier(x, label, 2, steps=3)(x), train_classifier(x, label, 2, steps=3)(x))


SHAPES = [(2, 7), (2, 6, 5), (2, 3, 4, 5)]
NAMES = ("label", "vector", "image", "tokens")
TIME = torch.tensor([10.0, 500.0])


def conditioned(shape):
    encoder = CaptionEncoder(vocabulary=7, length=5, width=8, depth=1, heads=2)
    return awake(UNet(shape, 8, (1, 2), 1, (2,), heads=2, classes=3, vector=4, image=3, tokens=encoder), 0.3)


def inputs(shape):
    """A signal of two rows, and all of its conditions."""
    g = torch.Generator().manual_seed(1)
    x, vector, image = (torch.randn(2, *s, generator=g) for s in (shape, (4,), (3, *shape[1:])))
    return x, {
        "label": torch.tensor([0, 2]),
        "vector": vector,
        "image": image,
        "tokens": torch.tensor([[3, 1, 4], [1, 5, 2]]),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_each_row_depends_on_its_own_condition(shape, name):
    network, (x, given) = conditioned(shape), inputs(shape)
    other = given[name].clone()
    other[1] = (
        other[1].flip(0) if name == "tokens" else other[1] - 1
    )  # the same tokens in another order are another caption
    y, changed = network(x, TIME, **given), network(x, TIME, **given | {name: other})
    torch.testing.assert_close(y[0], changed[0], rtol=0, atol=1e-6)
    assert (y[1] - changed[1]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_every_condition_and_every_parameter(shape):
    network, (x, given) = conditioned(shape), inputs(shape)
    leaves = [given[name].requires_grad_() for name in ("vector", "image")]
    tables = [network.label.table.weight, network.tokens.table.weight]
    vector, image, labels, tokens = torch.autograd.grad(network(x, TIME, **given)[1].square().sum(), leaves + tables)
    for gradient in (vector, image):
        assert (gradient[0] == 0).all()
        assert (gradient[1] != 0).all()
    assert labels.abs().sum(1).nonzero().flatten().tolist() == [2]
    assert tokens.abs().sum(1).nonzero().flatten().tolist() == [
        1,
        2,
        5,
        7,
    ]  # the second caption and padding, the last row
    network(x, TIME, image=image).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_missing_condition_is_the_null_condition():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    null = {
        "label": torch.tensor([3, 3]),
        "vector": network.null_vector.expand(2, -1),
        "tokens": torch.full((2, 5), -1),
    }
    for name in null:
        rest = {k: v for k, v in given.items() if k != name}
        explicit, missing = network(x, TIME, **rest, **{name: null[name]}), network(x, TIME, **rest)
        torch.testing.assert_close(missing, explicit, rtol=0, atol=1e-6)
        mixed = torch.cat(
            [given[name][:1], null[name][:1, : given[name].shape[1]] if name == "tokens" else null[name][:1]]
        )
        both = network(x, TIME, **rest, **{name: mixed})
        torch.testing.assert_close(both[1], explicit[1], rtol=0, atol=1e-6)  # null for one row alone
        assert (both[0] - explicit[0]).abs().max() > 1e-3
    empty = network(x, TIME, **given | {"tokens": torch.empty(2, 0, dtype=torch.int64)})
    torch.testing.assert_close(empty, network(x, TIME, **given | {"tokens": None}), rtol=0, atol=1e-6)


def test_padding_does_not_change_what_a_sequence_says():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    padded = F.pad(given["tokens"], (0, 2), value=-1)
    torch.testing.assert_close(network(x, TIME, **given | {"tokens": padded}), network(x, TIME, **given))
    assert (network.tokens(padded[:, :2]) - network.tokens(padded)).abs().max() > 1e-3  # the third token is no padding
    before = network.tokens(given["tokens"])
    with torch.no_grad():
        network.tokens.table.weight[7, 0] += 1
    assert ((network.tokens(given["tokens"]) - before).abs().amax(2) > 1e-4).all()  # padding is attended to, not masked
    network.tokens.eval()
    with torch.no_grad():  # torch's fused path
        fused = network.tokens(padded)
    torch.testing.assert_close(fused, network.tokens(padded), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["pooled", "attention"])
def test_tokens_enter_through_the_time_embedding_and_through_every_attention(way):
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    layers = [m.context for m in network.modules() if isinstance(m, SelfAttention)]
    assert len(layers) == 4  # one on the way down, the middle, two on the way up
    for closed in layers if way == "pooled" else [network.pooled]:
        zeroed(closed)
    change = network(x, TIME, **given) - network(x, TIME, **given | {"tokens": given["tokens"].flip(0)})
    assert change.abs().max() > 1e-4
    states = network.tokens(given["tokens"])
    assert torch.equal(network.tokens.pool(states), states[:, 4])


def test_a_network_lists_its_conditions_and_refuses_others():
    x, given = inputs((2, 6, 5))
    options = {
        "label": {"classes": 3},
        "vector": {"vector": 4},
        "image": {"image": 3},
        "tokens": {"tokens": CaptionEncoder(7, 5, 8, 1, 2)},
    }
    assert conditioned((2, 6, 5)).conditions == NAMES
    assert UNet((2, 6, 5), 8, (1,), 1).conditions == MLP(3).conditions == Encoder((2, 6, 5)).conditions == ()
    for name, option in options.items():
        network = UNet((2, 6, 5), 8, (1,), 1, **option)
        assert network.conditions == (name,)
        for other in (n for n in NAMES if n != name):
            argument = next(iter(options[other]))
            with pytest.raises(
                UsageError, match=f"{other}=... was given to a network without {argument}: build it with {argument}=..."
            ):
                network(x, TIME, **{name: given[name], other: given[other]})


@pytest.mark.parametrize(("shape", "mode"), [((2, 8), "linear"), ((2, 8, 6), "bilinear"), ((2, 4, 6, 5), "trilinear")])
def test_a_smaller_image_is_interpolated(shape, mode):
    network, (x, given) = conditioned(shape), inputs(shape)
    small = torch.randn(2, 3, *(n // 2 for n in shape[1:]))
    large = F.interpolate(small, size=shape[1:], mode=mode)
    torch.testing.assert_close(
        network(x, TIME, **given | {"image": small}), network(x, TIME, **given | {"image": large})
    )
    assert not torch.allclose(
        network(x, TIME, **given | {"image": small}), network(x, TIME, **given | {"image": large.roll(1, -1)})
    )


def test_conditions_that_do_not_fit_are_refused():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    for name, bad, words in [
        ("image", None, r"takes image=... of shape \(2, 3, 6, 5\) or smaller sizes, real-valued, not none"),
        ("image", torch.zeros(2, 3, 7, 5), r"not torch.float32 of shape \(2, 3, 7, 5\)"),
        ("image", torch.zeros(2, 2, 6, 5), r"not torch.float32 of shape \(2, 2, 6, 5\)"),
        ("image", torch.zeros(1, 3, 6, 5), r"not torch.float32 of shape \(1, 3, 6, 5\)"),
        ("image", torch.zeros(2, 3, 6), r"not torch.float32 of shape \(2, 3, 6\)"),
        ("image", torch.zeros(2, 3, 6, 5, dtype=torch.uint8), "not torch.uint8"),
        ("vector", torch.zeros(1, 4), r"takes vector=... of shape \(2, 4\), not \(1, 4\)"),
        ("tokens", torch.zeros(1, 3, dtype=torch.int64), "takes tokens=... with 2 rows, one for each signal, not 1"),
        ("tokens", torch.zeros(2, 6, dtype=torch.int64), r"of shape \(B, 5\) or shorter, .* \(2, 6\): convert or cut"),
        ("tokens", torch.zeros(2, 3), "must be integers of shape .* not torch.float32"),
        ("tokens", torch.full((2, 3), 7), r"tokens must be in 0..6, or -1 for padding"),
        ("tokens", torch.full((2, 3), -2), r"tokens must be in 0..6, or -1 for padding"),
    ]:
        with pytest.raises(UsageError, match=words):
            network(x, TIME, **given | {name: bad})
    with pytest.raises(UsageError, match="image=1 .* real-valued signals: .* without categories=4"):
        UNet((1, 8, 8), categories=4, image=1)
    with pytest.raises(UsageError, match="vector=0, .*: each must be 1 or more"):
        UNet((1, 8, 8), vector=0)
    with pytest.raises(UsageError, match="width=8, depth=2, heads=3: .* heads must divide width"):
        CaptionEncoder(7, 5, 8, heads=3)
    with pytest.raises(UsageError, match="build it with context=..."):
        SelfAttention(8, 2)(torch.zeros(1, 8, 3), torch.zeros(1, 5, 8))


def test_conditions_leave_the_weights_of_older_networks_in_place():
    """Checkpoints hold weights by name, and those of earlier versions the state of the optimizer by the order of the
    parameters.
    """
    plain = UNet((1, 4, 4), 8, (1, 2), 1, (2,), classes=2)
    assert list(dict.fromkeys(name.split(".")[0] for name, _ in plain.named_parameters())) == (
        ["time", "label", "stem", "down", "up", "middle", "head"]
    )
    part = {"0": ["norm1", "conv1", "modulation", "norm2", "conv2"], "1": ["norm", "qkv", "out"]}
    names = [f"{i}.{layer}.{kind}" for i, layers in part.items() for layer in layers for kind in ("weight", "bias")]
    names.insert(10, "0.skip.weight")
    names.insert(11, "0.skip.bias")
    assert [n for n, _ in plain.down[1]["stages"][0].named_parameters()] == names
    assert [n for n, _ in MLP(3, depth=1).named_parameters() if n.endswith("weight")] == (
        [
            "time.mlp.0.weight",
            "time.mlp.2.weight",
            "enter.weight",
            "leave.weight",
            "layers.0.0.weight",
            "layers.0.1.weight",
        ]
    )


def test_a_conditional_network_is_described_in_full():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    plain = Encoder((2, 6, 5), classes=3, width=8, multipliers=(1, 3), blocks=2, attention=(1,), heads=2)
    perceptron = MLP(3, 8, 1, classes=4, outputs=2)
    encoder = CaptionEncoder(vocabulary=7, length=4, width=8, depth=1, heads=2)
    cases = [
        (network, (x, TIME)),
        (plain, (x, TIME)),
        (perceptron, (x[:, 0, 0, :3], TIME)),
        (encoder, (given["tokens"],)),
    ]
    for first, arguments in cases:
        further = given if first is network else {}
        again = deserialize(json.loads(json.dumps(serialize(first))))
        assert serialize(again) == serialize(first)
        again.load_state_dict(awake(first, 0.3).state_dict())
        assert torch.equal(again(*arguments, **further), first(*arguments, **further))


@pytest.mark.parametrize(
    ("make", "shape", "heads"),
    [
        (
            lambda outputs: UNet((3, 5, 4), 8, (1, 2), 1, (2,), outputs=outputs),
            (3, 5, 4),
            ["head.2.weight", "head.2.bias"],
        ),
        (lambda outputs: MLP(3, 8, 1, outputs=outputs), (3,), ["leave.weight", "leave.bias"]),
    ],
)
def test_the_first_of_two_outputs_is_the_prediction(make, shape, heads):
    """The first C channels are those of the network with one output and the first half of the last layer.

    Then C more.
    """
    two, x = awake(make(2)), torch.randn(2, *shape)
    y = two(x, TIME)
    assert y.shape == (2, 6, *shape[1:])
    for half in (0, 1):
        one = make(1)
        one.load_state_dict({k: v.chunk(2)[half] if k in heads else v for k, v in two.state_dict().items()})
        torch.testing.assert_close(one(x, TIME), y.chunk(2, dim=1)[half])


def test_mlp_takes_a_label():
    network, x, label = awake(MLP(3, 8, 1, classes=2)), torch.randn(2, 3), torch.tensor([0, 1])
    y = network(x, TIME, label)
    assert network.conditions == ("label",)
    torch.testing.assert_close(network(x, TIME), network(x, TIME, torch.tensor([2, 2])))
    torch.testing.assert_close(network(x, TIME, torch.tensor([0, 2]))[0], y[0])
    assert all(
        (a - b).abs().max() > 1e-3 for a, b in [(network(x, TIME, label.flip(0)), y), (network(x, TIME)[1], y[1])]
    )
    with pytest.raises(UsageError, match="without classes: build it with classes="):
        MLP(3)(x, TIME, label)
    with pytest.raises(UsageError, match="classes=None, outputs=0: each must be 1 or more"):
        MLP(3, outputs=0)


def test_attention_joins_a_context_to_its_keys_and_values():
    layer = awake(SelfAttention(4, 2, context=5), 1.0)
    x, context = torch.randn(1, 4, 3), torch.randn(1, 6, 5)
    q, k, v = layer.qkv(layer.norm(x)).view(3, 2, 2, 3)
    further = layer.context(context).view(6, 2, 2, 2)  # length, key or value, heads, channels of a head
    heads = []
    for i in range(2):
        keys, values = torch.cat([k[i].T, further[:, 0, i]]), torch.cat([v[i].T, further[:, 1, i]])
        heads.append(torch.softmax(q[i].T @ keys.T / 2**0.5, dim=-1) @ values)
    torch.testing.assert_close(layer(x, context), x + layer.out(torch.cat([h.T for h in heads])[None]))


def test_attention_pooling_asks_with_the_mean():
    layer, x = awake(AttentionPool(4, 2), 1.0), torch.randn(1, 4, 3, 2)
    h = layer.norm(x).flatten(2)
    q = (h.mean(2) @ layer.query.weight.T + layer.query.bias).view(2, 2)
    k, v = layer.kv(h).view(2, 2, 2, 6)
    heads = [torch.softmax(q[i] @ k[i] / 2**0.5, dim=-1) @ v[i].T for i in range(2)]
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads)[None]))
    torch.testing.assert_close(layer(x), layer(x.flatten(2)[..., torch.randperm(6)]))
    with pytest.raises(UsageError, match="4 channels cannot be split over 3 heads"):
        AttentionPool(4, 3)


@pytest.mark.parametrize("shape", [(1, 13), (3, 8, 8), (1, 5, 7), (2, 4, 3, 5)])
def test_encoder_classifies_any_signal_at_any_time(shape):
    network, x = (
        awake(Encoder(shape, classes=3, width=8, multipliers=(1, 2), heads=2), 0.3),
        torch.randn(2, *shape, requires_grad=True),
    )
    logits = network(x, TIME)
    assert logits.shape == (2, 3)
    later = network(x, TIME + torch.tensor([0, 400]))
    torch.testing.assert_close(later[0], logits[0], rtol=0, atol=1e-6)
    assert (later[1] - logits[1]).abs().max() > 1e-3
    logits[1].log_softmax(0)[0].backward()
    assert (x.grad[0] == 0).all()
    assert (x.grad[1] != 0).all()  # what classifier guidance asks for
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    unet = UNet(shape, 8, (1, 2), 1, (2,), heads=2)
    for part in ("time", "stem", "down", "middle"):  # the down half of the U-Net: its weights fit
        getattr(network, part).load_state_dict(getattr(unet, part).state_dict())
    with pytest.raises(UsageError, match=rf"takes \(B, {shape[0]}, ...\) with {len(shape) - 1} sizes, not \(2, 9, 8\)"):
        network(torch.zeros(2, 9, 8), TIME)
    with pytest.raises(UsageError, match="classes=0: give the number"):
        Encoder(shape, classes=0)


def test_encoder_learns():
    torch.manual_seed(0)
    label = torch.arange(64) % 2
    x = torch.randn(64, 1, 6, 6) + label[:, None, None, None] * torch.linspace(-3, 3, 6)
    model = Encoder((1, 6, 6), 2, 8, (1, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(x, torch.zeros(64)), label).backward()
        optimizer.step()
    assert (model(x, torch.zeros(64)).argmax(1) == label).float().mean() > 0.95
