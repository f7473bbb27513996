"""Networks for signals of any shape, and the data that feed them."""

import pytest
import torch

from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP, UNet
from unnoise.shared.networks.blocks import SelfAttention
from unnoise.shared.networks.classifier import train_classifier
from unnoise.shared.networks.embeddings import sinusoidal


def awake(network):
    """The network with no parameter at zero, so that every path reaches the output."""
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (5, 7, 9), (2, 13), (1, 4, 6, 5)])
@pytest.mark.parametrize("levels", [None, 4])
def test_unet_takes_any_shape(shape, levels):
    network = awake(UNet(shape, 8, (1, 2), 1, (2,), heads=2, classes=3, levels=levels))
    x = torch.randn(2, *shape) if levels is None else torch.randint(0, levels, (2, *shape))
    y = network(x, torch.tensor([1.0, 900.0]), torch.tensor([0, 2]))
    assert y.shape == (2, *shape) + (() if levels is None else (levels,))
    assert torch.isfinite(y).all()
    other_time = network(x, torch.tensor([1.0, 100.0]), torch.tensor([0, 2]))
    other_label = network(x, torch.tensor([1.0, 900.0]), torch.tensor([0, 1]))
    assert torch.equal(y[0], other_time[0])
    assert torch.equal(y[0], other_label[0])
    assert not torch.allclose(y[1], other_time[1])
    assert not torch.allclose(y[1], other_label[1])
    assert not torch.allclose(network(x, torch.tensor([1.0, 900.0])), y)  # no label is the null class


def test_unet_sees_every_level_of_its_own_pixel():
    """Channels and levels must not be mixed up between the stem and the logits."""
    network = awake(UNet((2, 4), 8, (1,), 1, (), levels=3))
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


def test_mlp_and_classifier_learn():
    torch.manual_seed(0)
    assert MLP(3)(torch.randn(5, 3), torch.rand(5)).shape == (5, 3)
    label = torch.arange(200) % 2
    x = torch.rand(200, 1, 8, 8) * 0.2 + label[:, None, None, None] * 0.5
    model = train_classifier(x, label, 2, steps=40, batch=32)
    assert (model(x).argmax(1) == label).float().mean() > 0.95
    assert torch.equal(train_classifier(x, label, 2, steps=3)(x), train_classifier(x, label, 2, steps=3)(x))
