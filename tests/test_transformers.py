"""The networks for text: their positions, conditions and blocks."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from unnoise.shared.errors import UsageError
from unnoise.shared.networks import DiT, Transformer
from unnoise.shared.networks.dit import DiTBlock, Rotary
from unnoise.shared.networks.transformer import EncoderLayer, RelativeBias, relative_buckets
from unnoise.shared.serialization import deserialize, serialize

NETWORKS = [Transformer, DiT]
TIME = torch.tensor([10.0, 500.0])


def awake(module):
    """The module with no parameter at zero, so that every path reaches the output, and none so large that attention
    sees one token.
    """
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=generator)
    return module


def small(cls, length=9, **options):
    return awake(cls(7, length, width=8, depth=2, heads=2, **options))


def tokens(length=9):
    return torch.randint(7, (2, length), generator=torch.Generator().manual_seed(1))


def bucket(offset, buckets, max_distance):
    """The definition, with logarithms; a hair more, so that a distance at the edge of a bucket belongs to it."""
    side = buckets // 2
    exact = side // 2
    d = abs(offset)
    if d >= exact:
        d = min(
            exact + math.floor(math.log(d / exact) / math.log(max_distance / exact) * (side - exact) + 1e-9), side - 1
        )
    return d + (side if offset > 0 else 0)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 100), (4, 2), (6, 5), (10, 7), (14, 64)])
def test_relative_buckets_are_those_of_t5(buckets, max_distance):
    offset = torch.arange(-300, 301)
    found = relative_buckets(offset, buckets, max_distance)
    assert found.tolist() == [bucket(o, buckets, max_distance) for o in offset.tolist()]
    behind, ahead = found[:301].flip(0), found[300:]  # by distance
    for side in (behind, ahead):
        assert (side[1:] >= side[:-1]).all()
    assert torch.equal(ahead[1:], behind[1:] + buckets // 2)
    assert behind.max() == buckets // 2 - 1  # all that is far shares the last


def test_relative_buckets_at_the_edges_that_t5_is_known_by():
    distance = torch.tensor([0, 1, 7, 8, 11, 12, 15, 16, 31, 32, 63, 64, 90, 91, 127, 128, 10_000])
    expected = torch.tensor([0, 1, 7, 8, 8, 9, 9, 10, 11, 12, 13, 14, 14, 15, 15, 15, 15])
    assert torch.equal(relative_buckets(-distance), expected)
    assert torch.equal(relative_buckets(distance[1:]), expected[1:] + 16)
    for buckets, max_distance in [(7, 128), (2, 128), (32, 8)]:
        with pytest.raises(UsageError, match=f"buckets={buckets}, max_distance={max_distance}: give an even number"):
            relative_buckets(distance, buckets, max_distance)


@pytest.mark.parametrize("length", [1, 2, 6, 9])
def test_the_bias_at_query_i_and_key_j_is_that_of_j_minus_i(length):
    bias = awake(RelativeBias(9, 3, 8, 6))
    found = bias(length)
    assert found.shape == (3, length, length)
    for i in range(length):
        for j in range(length):
            assert torch.equal(found[:, i, j], bias.table.weight[bucket(j - i, 8, 6)])
    (gradient,) = torch.autograd.grad(found.sum(), bias.table.weight)
    assert gradient.sum() == 3 * length**2


def test_a_mirrored_text_under_mirrored_positions_is_the_mirrored_answer():
    """Only the bias tells left from right; a text of one token gives the same answer everywhere."""
    network, x = small(Transformer, buckets=8, max_distance=6), tokens()
    y = network(x, TIME)
    assert (network(x.flip(1), TIME) - y.flip(1)).abs().max() > 1e-3
    same = network(torch.full((2, 9), 3), TIME)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    with torch.no_grad():
        network.bias.table.weight.copy_(network.bias.table.weight[[0, 5, 6, 7, 4, 1, 2, 3]])
    torch.testing.assert_close(network(x.flip(1), TIME), y.flip(1))


def test_rotary_turns_pairs_by_their_position():
    h = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = Rotary(11, 6).double()(h)
    pairs = torch.complex(h[..., :3], h[..., 3:])
    for p in range(5):
        for i in range(3):
            expected = pairs[:, p, i] * torch.exp(torch.tensor(1j * p * 10_000 ** (-2 * i / 6), dtype=torch.complex128))
            torch.testing.assert_close(torch.complex(turned[:, p, i], turned[:, p, 3 + i]), expected, rtol=0, atol=1e-6)


def test_rotary_scores_depend_on_the_difference_of_positions():
    rotary, g = Rotary(20, 8), torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=g).expand(20, 8) for _ in range(2))
    scores = rotary(q) @ rotary(k).T
    for offset in range(-19, 20):
        line = scores.diagonal(offset)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-5)
    assert scores[0].std() > 0.1
    assert (scores - scores.T).abs().max() > 0.1  # and on its sign
    with pytest.raises(UsageError, match="rotary positions need heads of even size, not 3"):
        DiT(7, 9, 6, heads=2)


def attention(qkv, heads, turn=lambda h: h, bias=None):
    """Softmax attention head by head, `(B, L, 3 width)` to `(B, L, width)`."""
    q, k, v = qkv.chunk(3, dim=-1)
    out, d = [], q.shape[-1] // heads
    for n in range(heads):
        part = slice(n * d, (n + 1) * d)
        scores = turn(q[..., part]) @ turn(k[..., part]).mT / d**0.5
        out.append(torch.softmax(scores if bias is None else scores + bias[n], dim=-1) @ v[..., part])
    return torch.cat(out, dim=-1)


def gelu(x):
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def test_an_encoder_layer_is_its_formula():
    layer, g = awake(EncoderLayer(8, 2, 12, 0.0)), torch.Generator().manual_seed(0)
    h, bias = torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 5, generator=g)

    def norm(x, scale):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    middle = h + attention(norm(h, layer.norm1.weight) @ layer.qkv.weight.T, 2, bias=bias) @ layer.out.weight.T
    expected = middle + gelu(norm(middle, layer.norm2.weight) @ layer.mlp[0].weight.T) @ layer.mlp[2].weight.T
    torch.testing.assert_close(layer(h, bias), expected)
    assert all("bias" not in name for name, _ in layer.named_parameters())


def test_a_dit_block_is_its_formula():
    block, rotary, g = awake(DiTBlock(8, 2, 12, 0.0, 5)), Rotary(9, 4), torch.Generator().manual_seed(0)
    h, embedding = torch.randn(2, 6, 8, generator=g), torch.randn(2, 5, generator=g)
    b1, s1, g1, b2, s2, g2 = (embedding @ block.modulation.weight.T + block.modulation.bias)[:, None].split(8, dim=-1)

    def norm(x, scale):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * scale

    attended = attention((norm(h, block.norm1.weight) * (1 + s1) + b1) @ block.qkv.weight.T, 2, turn=rotary)
    middle = h + g1 * (attended @ block.out.weight.T)
    hidden = gelu((norm(middle, block.norm2.weight) * (1 + s2) + b2) @ block.mlp[0].weight.T + block.mlp[0].bias)
    expected = middle + g2 * (hidden @ block.mlp[2].weight.T + block.mlp[2].bias)
    torch.testing.assert_close(block(h, embedding, rotary), expected)


def test_what_enters_and_leaves_the_layers_is_its_formula():
    label, x = torch.tensor([0, 3]), tokens()
    for cls in NETWORKS:
        network, states = small(cls, classes=3), []
        stack = network.layers if cls is Transformer else network.blocks
        stack[0].register_forward_pre_hook(lambda module, inputs, states=states: states.append(inputs[0]))
        stack[-1].register_forward_hook(lambda module, inputs, output, states=states: states.append(output))
        y = network(x, TIME, label=label)
        entered, h, label_vector = network.embed.weight[x], states[1], network.label.table.weight[label]
        if cls is Transformer:
            torch.testing.assert_close(states[0], entered + (network.time(TIME) + label_vector)[:, None])
            torch.testing.assert_close(y, network.norm(h) @ network.head.weight.T)
        else:
            torch.testing.assert_close(states[0], entered)
            angle = TIME[:, None] * 10_000 ** (-torch.arange(128) / 128)
            embedding = F.silu(network.time(torch.cat([angle.cos(), angle.sin()], dim=1)) + label_vector)
            shift, scale = network.modulation(embedding)[:, None].split(8, dim=-1)
            torch.testing.assert_close(y, network.head(network.norm(h) * (1 + scale) + shift), rtol=1e-4, atol=1e-4)


def test_the_time_of_a_dit_enters_by_cosines_and_sines():
    network, seen = small(DiT), []
    network.time.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(tokens(), TIME)
    angle = TIME[:, None].double() * 10_000 ** (-torch.arange(128) / 128).double()
    torch.testing.assert_close(seen[0].double(), torch.cat([angle.cos(), angle.sin()], dim=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_fresh_text_network_wakes_up(cls):
    """Every parameter moves within four steps, though the head and the gates of a DiT start at zero."""
    torch.manual_seed(0)
    network = cls(7, 9, 8, 2, 2, classes=3)
    assert (network(tokens(), TIME) == 0).all() == (cls is DiT)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(
            network(tokens(), TIME, label=torch.tensor([0, 1])).flatten(0, 1), tokens().flatten()
        ).backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, before[name])] == []


def test_a_fresh_dit_block_is_the_identity():
    block, h = DiTBlock(8, 2, 12, 0.0, 5), torch.randn(2, 9, 8)
    assert torch.equal(block(h, torch.randn(2, 5), Rotary(9, 4)), h)


def test_a_fresh_transformer_keeps_the_size_of_its_states_at_any_depth():
    torch.manual_seed(0)
    x, time, sizes = torch.randint(28, (4, 64)), torch.tensor([1.0, 10.0, 500.0, 1000.0]), []
    for depth in (1, 24):
        network = Transformer(28, 64, 64, depth, 4)
        network.norm.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].std().item()))
        network(x, time)
    assert all(0.9 < size < 1.6 for size in sizes)
    assert abs(sizes[0] - sizes[1]) < 0.2


def test_a_fresh_bias_prefers_near_tokens_and_tells_heads_apart():
    torch.manual_seed(0)
    bias = RelativeBias(200, 500, 32, 128)(200)
    distance = (torch.arange(200)[:, None] - torch.arange(200)).abs()
    for d, start in [(0, 0), (1, 1), (7, 7), (8, 8), (10, 8), (40, 32), (150, 91)]:
        at = bias[:, distance == d]
        assert abs(at.mean() + 2 * math.log1p(start)) < 0.15
        assert abs(at[:, 0].std() - 1) < 0.15


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_window_is_read_alike_whatever_the_longest(cls, length):
    """Positions are relative, their tables no part of the weights; every position sees every other."""
    short, long, x = small(cls, length, classes=3), small(cls, 50, classes=3), tokens(length)
    y = short(x, TIME)
    assert y.shape == (2, length, 7)
    assert short.state_dict().keys() == long.state_dict().keys()
    torch.testing.assert_close(long(x, TIME), y)
    other = x.clone()
    other[:, -1] = (other[:, -1] + 1) % 7
    assert ((long(other, TIME) - y).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("cls", NETWORKS)
def test_each_row_depends_on_its_own_time_and_label(cls):
    network, x, label = small(cls, classes=3), tokens(), torch.tensor([0, 2])
    y = network(x, TIME, label=label)
    for changed in (network(x, torch.tensor([10.0, 100.0]), label=label), network(x, TIME, label=torch.tensor([0, 1]))):
        torch.testing.assert_close(changed[0], y[0], rtol=0, atol=1e-5)
        assert (changed[1] - y[1]).abs().max() > 1e-3
    assert (network(x.flip(1), TIME, label=label) - y.flip(1)).abs().max() > 1e-3  # order counts


def test_an_untimed_dit_hears_zero_at_any_time():
    timed, untimed, x = small(DiT), small(DiT, timed=False), tokens()
    assert torch.equal(untimed(x, TIME), untimed(x, 2 * TIME))
    torch.testing.assert_close(untimed(x, TIME), timed(x, torch.zeros(2)))
    assert not torch.allclose(untimed(x, TIME), timed(x, TIME))


@pytest.mark.parametrize("cls", NETWORKS)
def test_no_label_is_the_null_class(cls):
    network, x = small(cls, classes=3), tokens()
    assert network.conditions == ("label",)
    assert network.null("label").tolist() == 3
    torch.testing.assert_close(network(x, TIME), network(x, TIME, label=network.null("label").expand(2)))
    plain = small(cls)
    assert plain.conditions == ()
    with pytest.raises(UsageError, match="no value for an absent label"):
        plain.null("label")
    with pytest.raises(UsageError, match="without classes: build it with classes="):
        plain(x, TIME, label=torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="classes 0 to 2, and 3 for no label"):
        network(x, TIME, label=torch.tensor([0, 4]))


@pytest.mark.parametrize("cls", NETWORKS)
def test_gradients_reach_every_parameter(cls):
    network = small(cls, classes=3, buckets=6, max_distance=4) if cls is Transformer else small(cls, classes=3)
    network(torch.arange(7).expand(2, 7), TIME, label=torch.tensor([0, 1])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("cls", NETWORKS)
def test_wrong_text_is_refused_in_one_line(cls):
    network = small(cls)
    for x, words in [
        (
            torch.zeros(2, 10, dtype=torch.int64),
            "10 tokens were given to a network of length=9: cut them, or build the network with a larger length",
        ),
        (torch.zeros(2, 9), r"takes int64 tokens of shape \(B, L\), not torch.float32 of shape \(2, 9\)"),
        (torch.zeros(9, dtype=torch.int64), r"not torch.int64 of shape \(9,\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"not torch.int64 of shape \(2, 0\)"),
        (torch.tensor([[0, 3, 7]]), "token 7 is out of range; this network has a vocabulary of 7: give tokens in 0..6"),
        (torch.tensor([[0, -1, 7]]), "token -1 is out of range"),
    ]:
        with pytest.raises(UsageError, match=words):
            network(x, TIME[: len(x)])
    for option in ("vocabulary", "length", "width", "depth", "heads", "hidden", "outputs", "classes"):
        with pytest.raises(UsageError, match=f"{option}=0.*: each size must be 1 or more"):
            cls(**{"vocabulary": 7, "length": 9, "width": 8, "heads": 2} | {option: 0})
    with pytest.raises(UsageError, match="width=8, heads=3, .*: .* heads must divide width"):
        cls(7, 9, 8, heads=3)
    with pytest.raises(UsageError, match="dropout=1.0: .*dropout must be in "):
        cls(7, 9, 8, heads=2, dropout=1.0)


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_text_network_is_described_in_full(cls):
    further = {"buckets": 6, "max_distance": 4} if cls is Transformer else {"embedding": 12, "timed": False}
    first = cls(7, 9, width=8, depth=3, heads=2, hidden=10, outputs=5, dropout=0.2, classes=3, **further)
    again = deserialize(json.loads(json.dumps(serialize(first))))
    assert serialize(again) == serialize(first)
    again.load_state_dict(awake(first).state_dict())
    first.eval(), again.eval()
    y = first(tokens(), TIME, label=torch.tensor([0, 1]))
    assert y.shape == (2, 9, 5)
    assert torch.equal(again(tokens(), TIME, label=torch.tensor([0, 1])), y)
    assert not torch.equal(again.train()(tokens(), TIME), first(tokens(), TIME))  # dropout


@pytest.mark.parametrize("cls", NETWORKS)
def test_half_precision_and_compilation_change_little(cls):
    network, x = small(cls), tokens()
    y = network(x, TIME)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x, TIME).float(), y, rtol=0.1, atol=0.1 * y.abs().max().item())
    torch.testing.assert_close(torch.compile(network, backend="aot_eager", fullgraph=True)(x, TIME), y)


@pytest.mark.parametrize("cls", NETWORKS)
def test_text_networks_learn_to_copy_from_a_relative_position(cls):
    """Which no network can do that confuses positions: the answer at i is the token at i - 1."""
    torch.manual_seed(0)
    network, g = cls(8, 12, width=32, depth=1, heads=2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        x = torch.randint(8, (32, 12), generator=g)
        loss = F.cross_entropy(network(x, torch.zeros(32))[:, 1:].flatten(0, 1), x[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # log 8 = 2.08 by guessing
