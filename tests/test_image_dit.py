"""The transformer on patches, against its formulas and its published sizes."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from unnoise.continuous import DDIM, Tabulated, linear_betas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.denoiser import Learned
from unnoise.shared.networks import CaptionEncoder, image_dit
from unnoise.shared.networks.image_dit import ImageDiT, ImageDiTBlock, patchify, position_embedding, unpatchify
from unnoise.shared.serialization import deserialize, serialize

SHAPES = [(1, 7), (5, 6, 4), (2, 3, 5), (1, 3, 4, 5)]
TIME = torch.tensor([10.0, 500.0])
NAMES = ("label", "vector", "image", "tokens", "augment")
SIZES = {"S": (384, 12, 6, 33), "B": (768, 12, 12, 130), "L": (1024, 24, 16, 458), "XL": (1152, 28, 16, 675)}


def awake(network, std=0.3):
    """The network with no parameter at zero, so that every path reaches the output."""
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=std)
    return network


def conditioned(shape, patch=2):
    encoder = CaptionEncoder(vocabulary=7, length=5, width=8, depth=1, heads=2)
    return awake(ImageDiT(shape, patch, 12, 2, 2, classes=3, vector=4, image=3, tokens=encoder, augment=2))


def inputs(shape):
    """A signal of two rows, and all of its conditions."""
    g = torch.Generator().manual_seed(1)
    x, vector, image, augment = (torch.randn(2, *s, generator=g) for s in (shape, (4,), (3, *shape[1:]), (2,)))
    tokens = torch.tensor([[3, 1, 4], [1, 5, 2]])
    return x, {"label": torch.tensor([0, 2]), "vector": vector, "image": image, "tokens": tokens, "augment": augment}


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes(size):
    """Parameters by hand, for latents of 4 channels, 1000 classes and the null class.

    The published numbers are in millions.
    """
    width, depth, heads, millions = SIZES[size]
    with torch.device("meta"):
        network = ImageDiT((4, 32, 32), 2, width, depth, heads, classes=1000, outputs=2)
    attention = 3 * width * width + 3 * width + width * width + width
    perceptron = 4 * width * width + 4 * width + 4 * width * width + width
    modulation = 6 * width * width + 6 * width
    stem, time, label = 4 * 4 * width + width, 256 * width + width + width * width + width, 1001 * width
    final = 2 * width * width + 2 * width + width * 2 * 2 * 8 + 2 * 2 * 8
    count = sum(p.numel() for p in network.parameters())
    assert count == stem + time + label + depth * (attention + perceptron + modulation) + final
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_are_those_of_a_strided_convolution(shape):
    dims, g = len(shape) - 1, torch.Generator().manual_seed(0)
    x = torch.randn(2, shape[0], *(2 * n for n in shape[1:]), generator=g)
    weight = torch.randn(6, shape[0], *[2] * dims, generator=g)
    convolved = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims](x, weight, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, 2) @ weight.flatten(1).T, convolved)


@pytest.mark.parametrize("grid", [(3,), (2, 3), (2, 1, 3)])
def test_every_number_of_a_patch_comes_to_its_place(grid):
    """Channels are last within a patch of the output."""
    p, channels = 2, 3
    h = torch.randn(1, math.prod(grid), channels * p ** len(grid))
    x = unpatchify(h, p, grid)
    assert x.shape == (1, channels, *(p * n for n in grid))
    for n, place in enumerate(itertools.product(*(range(m) for m in grid))):
        for i, inner in enumerate(itertools.product(range(p), repeat=len(grid))):
            at = tuple(p * a + b for a, b in zip(place, inner, strict=True))
            assert torch.equal(x[(0, slice(None), *at)], h[0, n, channels * i : channels * (i + 1)])


@pytest.mark.parametrize(("grid", "width"), [((4,), 6), ((2, 3), 8), ((3, 2), 10), ((2, 3, 4), 13)])
def test_positions_by_hand(grid, width):
    """Sines, then cosines, for each axis from the last to the first; then zeros."""
    found, m = position_embedding(grid, width), width // (2 * len(grid))
    assert found.shape == (math.prod(grid), width)
    for n, place in enumerate(itertools.product(*(range(k) for k in grid))):
        expected = []
        for p in reversed(place):
            angles = [p * 10_000 ** (-i / m) for i in range(m)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        expected += [0.0] * (width - len(expected))
        torch.testing.assert_close(found[n], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def normed(h):
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attended(block, h, context=None):
    """Softmax attention head by head."""
    q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    if context is not None:
        further = (context @ block.context.weight.T + block.context.bias).chunk(2, dim=-1)
        k, v = (torch.cat([a, b], dim=1) for a, b in zip(further, (k, v), strict=True))
    size, out = q.shape[-1] // block.heads, []
    for head in range(block.heads):
        a, b, c = (m[..., head * size : (head + 1) * size] for m in (q, k, v))
        out.append((a @ b.transpose(1, 2) / math.sqrt(size)).softmax(-1) @ c)
    return torch.cat(out, -1) @ block.out.weight.T + block.out.bias


def through(block, h, embedding, context=None):
    modulation = (embedding @ block.modulation.weight.T + block.modulation.bias)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
    h = h + gate1 * attended(block, normed(h) * (1 + scale1) + shift1, context)
    inner = (normed(h) * (1 + scale2) + shift2) @ block.mlp[0].weight.T + block.mlp[0].bias
    return h + gate2 * (gelu(inner) @ block.mlp[2].weight.T + block.mlp[2].bias)


@pytest.mark.parametrize("context", [None, 5])
def test_a_block_is_its_formula(context):
    block = awake(ImageDiTBlock(8, 2, 12, 0.0, context)).double()
    h, embedding = torch.randn(2, 6, 8).double(), torch.randn(2, 8).double()
    states = None if context is None else torch.randn(2, 3, context).double()
    torch.testing.assert_close(block(h, embedding, states), through(block, h, embedding, states))


@pytest.mark.parametrize("shape", [(3, 6), (3, 4, 6), (1, 2, 4, 6)])
def test_the_network_is_its_formula(shape):
    """A class and the time; the parts in their order."""
    network, x = awake(ImageDiT(shape, 2, 12, 2, 2, hidden=20, classes=3, outputs=2)), torch.randn(2, *shape)
    label, grid = torch.tensor([1, 3]), [n // 2 for n in shape[1:]]
    angles = TIME[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    first, _, second = network.time.mlp
    e = torch.cat([angles.cos(), angles.sin()], 1) @ first.weight.T + first.bias
    e = F.silu(F.silu(e) @ second.weight.T + second.bias + network.label.table.weight[label])
    h = patchify(x, 2) @ network.stem.weight.T + network.stem.bias + position_embedding(grid, 12).float()
    for block in network.blocks:
        h = through(block, h, e)
    shift, scale = (e @ network.modulation.weight.T + network.modulation.bias)[:, None].chunk(2, dim=-1)
    h = (normed(h) * (1 + scale) + shift) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x, TIME, label), unpatchify(h, 2, grid), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fresh_network_gives_zeros_and_a_fresh_block_is_the_identity(shape):
    network = ImageDiT(shape, 2, 12, 2, 2, classes=3)
    y = network(torch.randn(2, *shape), TIME, torch.tensor([0, 1]))
    assert y.shape == (2, *shape)
    assert (y == 0).all()
    h = torch.randn(2, 4, 12)
    assert torch.equal(network.blocks[0](h, torch.randn(2, 12)), h)


def test_a_fresh_network_learns():
    torch.manual_seed(0)
    network, x = ImageDiT((1, 6, 5), 2, 16, 1, 2), torch.randn(8, 1, 6, 5)
    optimizer, target = torch.optim.Adam(network.parameters(), 1e-2), x.flip(2)
    losses = []
    for _ in range(150):
        loss = (network(x, torch.zeros(8)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_without_positions_the_patches_are_a_set(dims, monkeypatch):
    """Moving patches moves the answer; with positions it does not."""
    network, x = awake(ImageDiT((2, *[6] * dims), 2, 12, 2, 2)), torch.randn(2, 2, *[6] * dims)
    moved = x.roll(2, -1)
    assert not torch.allclose(network(moved, TIME), network(x, TIME).roll(2, -1), rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(
        image_dit, "position_embedding", lambda grid, width, device: torch.zeros(math.prod(grid), width)
    )
    torch.testing.assert_close(network(moved, TIME), network(x, TIME).roll(2, -1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        network(x.roll(1, -1), TIME), network(x, TIME).roll(1, -1), rtol=1e-3, atol=1e-3
    )  # within a patch it does


@pytest.mark.parametrize(
    ("patch", "size", "full"), [(2, (5,), (6,)), (2, (4, 7), (4, 8)), (3, (7, 8), (9, 9)), (3, (1, 2, 4), (3, 3, 6))]
)
def test_sizes_that_the_patch_does_not_divide_are_padded_at_the_end(patch, size, full):
    network, x = awake(ImageDiT((2, *size), patch, 12, 2, 2, image=1)), torch.randn(2, 2, *size)
    image = torch.randn(2, 1, *size)
    larger, joined = torch.zeros(2, 2, *full), torch.zeros(2, 1, *full)
    here = (..., *(slice(n) for n in size))
    larger[here], joined[here] = x, image
    y = network(x, TIME, image=image)
    assert y.shape == x.shape
    torch.testing.assert_close(y, network(larger, TIME, image=joined)[here])


def test_any_size_at_run_time():
    """The shape says the channels and the number of sizes; positions are those of the grid that came."""
    small, large = (awake(ImageDiT((2, n, n), 2, 12, 2, 2)) for n in (4, 8))
    x = torch.randn(2, 2, 6, 9)
    assert torch.equal(small(x, TIME), large(x, TIME))
    assert small(x, TIME).shape == x.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_is_its_rows(shape):
    network, (x, given) = conditioned(shape), inputs(shape)
    y = network(x, TIME, **given)
    for i in range(2):
        alone = network(x[i : i + 1], TIME[i : i + 1], **{name: v[i : i + 1] for name, v in given.items()})
        torch.testing.assert_close(alone, y[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*NAMES, "time"])
def test_each_row_depends_on_its_own_condition(shape, name):
    network, (x, given) = conditioned(shape), inputs(shape)
    given["time"] = TIME
    other = given[name].clone()
    other[1] = other[1].flip(0) if name == "tokens" else other[1] - 1
    y, changed = network(x, **given), network(x, **given | {name: other})
    torch.testing.assert_close(y[0], changed[0], rtol=0, atol=1e-5)
    assert (y[1] - changed[1]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_every_condition_and_every_parameter(shape):
    network, (x, given) = conditioned(shape), inputs(shape)
    for name in ("vector", "image", "augment"):
        given[name].requires_grad_()
    network(x, TIME, **given).square().sum().backward(retain_graph=True)
    assert all((given[name].grad != 0).all() for name in ("vector", "image", "augment"))
    network(x, TIME, image=given["image"], augment=given["augment"]).square().sum().backward()  # the null vector
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ] == []


def test_a_missing_condition_is_the_null_condition():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    for name in ("label", "vector", "tokens", "augment"):
        null = network.null(name)
        rows = null.expand(2, 5) if name == "tokens" else null.expand(2, *null.shape)
        rest = {k: v for k, v in given.items() if k != name}
        torch.testing.assert_close(
            network(x, TIME, **rest), network(x, TIME, **rest, **{name: rows}), rtol=1e-4, atol=1e-5
        )
        assert (network(x, TIME, **rest) - network(x, TIME, **given)).abs().max() > 1e-3
    with pytest.raises(UsageError, match="no value for an absent image"):
        network.null("image")


@pytest.mark.parametrize("way", ["pooled", "attention"])
def test_tokens_enter_through_the_time_embedding_and_through_every_attention(way):
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    for closed in [block.context for block in network.blocks] if way == "pooled" else [network.pooled]:
        for p in closed.parameters():
            torch.nn.init.zeros_(p)
    change = network(x, TIME, **given) - network(x, TIME, **given | {"tokens": given["tokens"].flip(0)})
    assert change.abs().max() > 1e-4


def test_a_smaller_image_is_interpolated():
    network, (x, given) = conditioned((2, 6, 8)), inputs((2, 6, 8))
    small = torch.randn(2, 3, 3, 4)
    large = F.interpolate(small, size=(6, 8), mode="bilinear")
    torch.testing.assert_close(
        network(x, TIME, **given | {"image": small}), network(x, TIME, **given | {"image": large})
    )


def test_the_first_of_two_outputs_is_the_prediction():
    """Learned reads the second half of the channels as the spread."""
    network = awake(ImageDiT((3, 5, 4), 2, 12, 1, 2, outputs=2))
    x = torch.randn(2, 3, 5, 4)
    y = network(x, TIME)
    assert y.shape == (2, 6, 5, 4)
    one = ImageDiT((3, 5, 4), 2, 12, 1, 2)
    state = network.state_dict()
    for half in (0, 1):
        rows = {
            k: state[k].unflatten(0, (4, 6))[:, 3 * half : 3 * half + 3].flatten(0, 1)
            for k in ("head.weight", "head.bias")
        }
        one.load_state_dict(state | rows)
        torch.testing.assert_close(one(x, TIME), y[:, 3 * half : 3 * half + 3])


def test_dropout_is_for_training_alone():
    network, x = awake(ImageDiT((1, 4, 4), 2, 12, 1, 2, dropout=0.5)), torch.randn(2, 1, 4, 4)
    assert not torch.equal(network(x, TIME), network(x, TIME))
    network.eval()
    assert torch.equal(network(x, TIME), network(x, TIME))


def test_a_network_is_described_in_full():
    network, (x, given) = conditioned((2, 6, 5), 3), inputs((2, 6, 5))
    again = deserialize(json.loads(json.dumps(serialize(network))))
    assert serialize(again) == serialize(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, TIME, **given), network(x, TIME, **given))
    plain = deserialize(
        json.loads(json.dumps(serialize(ImageDiT((1, 4), 1, 12, 1, 2, 7, 0.1, 5, 2, null_label=False))))
    )
    assert (plain.hidden, plain.dropout, plain.classes, plain.outputs, plain.null_label) == (7, 0.1, 5, 2, False)


def test_a_network_lists_its_conditions_and_refuses_others():
    x, given = inputs((2, 6, 5))
    assert conditioned((2, 6, 5)).conditions == NAMES
    plain = ImageDiT((2, 6, 5), 2, 12, 1, 2)
    assert plain.conditions == ()
    for name in NAMES:
        with pytest.raises(UsageError, match=f"{name}=... was given to a network without"):
            plain(x, TIME, **{name: given[name]})


def test_wrong_input_is_refused_in_one_line():
    network, (x, given) = conditioned((2, 6, 5)), inputs((2, 6, 5))
    for name, bad, words in [
        ("image", None, r"takes image=... of shape \(2, 3, 6, 5\) or smaller sizes, real-valued, not none"),
        ("image", torch.zeros(2, 3, 7, 5), r"not torch.float32 of shape \(2, 3, 7, 5\)"),
        ("vector", torch.zeros(1, 4), r"takes vector=... of shape \(2, 4\), not \(1, 4\)"),
        ("augment", torch.zeros(2, 3), r"takes augment=... of shape \(2, 2\), not \(2, 3\)"),
        ("tokens", torch.zeros(1, 3, dtype=torch.int64), "takes tokens=... with 2 rows, one for each signal, not 1"),
        ("label", torch.tensor([0, 4]), "label out of range: this network has classes 0 to 2"),
    ]:
        with pytest.raises(UsageError, match=words):
            network(x, TIME, **given | {name: bad})
    with pytest.raises(UsageError, match=r"takes \(B, 2, ...\) with 2 sizes, not \(2, 3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8), TIME, **given)
    with pytest.raises(UsageError, match=r"\(8,\) must be \(channels, \*size\)"):
        ImageDiT((8,))
    with pytest.raises(UsageError, match="heads must divide width"):
        ImageDiT((1, 8, 8), width=10, heads=3)
    with pytest.raises(UsageError, match=r"patch=0.*: each size must be 1 or more"):
        ImageDiT((1, 8, 8), patch=0)
    with pytest.raises(UsageError, match="outputs=0.*: each must be 1 or more"):
        ImageDiT((1, 8, 8), outputs=0)
    with pytest.raises(UsageError, match="no label was given: this network needs a class from 0 to 2"):
        ImageDiT((1, 4), 2, 12, 1, 2, classes=3, null_label=False)(torch.zeros(1, 1, 4), torch.zeros(1))


def test_it_denoises():
    """Under a schedule, as any network of real-valued signals."""
    denoiser = Learned(awake(ImageDiT((1, 5, 4), 2, 12, 1, 2), 0.05), Tabulated(linear_betas(50)))
    with torch.no_grad():
        x = DDIM(denoiser)(shape=(2, 1, 5, 4), steps=3, generator=torch.Generator().manual_seed(0))
    assert x.isfinite().all()
