"""Attention is fused where first derivatives are enough, and has second and forward-mode ones where the input is
differentiated.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from unnoise.shared.networks import Encoder, ImageDiT, UNet, blocks

SHAPE = (2, 4, 4)
NETWORKS = {
    "unet": lambda: UNet(SHAPE, 8, (1, 2), 1, (1, 2), heads=2),
    "encoder": lambda: Encoder(SHAPE, 3, 8, (1, 2), 1, (1, 2), heads=2),
    "transformer": lambda: ImageDiT(SHAPE, patch=2, width=16, depth=1, heads=2),
}
STEP, WIDE = 1e-6, 1e-2  # features of the time are float32


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    made = NETWORKS[request.param]().double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made


@pytest.fixture
def signal(generator):
    x, v = torch.randn(2, 2, *SHAPE, dtype=torch.float64, generator=generator)
    return x, v, torch.tensor([0.2, 0.7], dtype=torch.float64)


def slope(network, x, t, **options):
    x = x if x.requires_grad else x.detach().requires_grad_()
    return torch.autograd.grad(network(x, t).square().sum(), x, **options)[0]


def test_second_derivatives(network, signal):
    x, v, t = signal
    y = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((slope(network, y, t, create_graph=True) * v).sum(), y)
    expected = (slope(network, x + STEP * v, t) - slope(network, x - STEP * v, t)) / (2 * STEP)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_forward_mode(network, signal):
    x, v, t = signal
    _, found = torch.func.jvp(lambda x: network(x, t), (x,), (v,))
    with torch.no_grad():
        expected = (network(x + STEP * v, t) - network(x - STEP * v, t)) / (2 * STEP)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_derivatives_in_the_time(network, signal):
    """Forward mode, and the second derivative, with the signal held."""
    x, _, t = signal
    along = torch.ones_like(t)
    _, found = torch.func.jvp(lambda t: network(x, t), (t,), (along,))
    with torch.no_grad():
        expected = (network(x, t + WIDE) - network(x, t - WIDE)) / (2 * WIDE)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    s = t.clone().requires_grad_()
    (first,) = torch.autograd.grad(network(x, s).sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), s)
    ahead, behind = (
        torch.autograd.grad(network(x, u).sum(), u)[0] for u in ((t + h).requires_grad_() for h in (WIDE, -WIDE))
    )
    torch.testing.assert_close(second, (ahead - behind) / (2 * WIDE), rtol=1e-2, atol=1e-3)


def test_forward_mode_of_a_slope(network, signal):
    x, v, t = signal
    _, found = torch.func.jvp(lambda x: torch.func.grad(lambda x: network(x, t).square().sum())(x), (x,), (v,))
    expected = (slope(network, x + STEP * v, t) - slope(network, x - STEP * v, t)) / (2 * STEP)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Names(TorchDispatchMode):
    """The operations that are run."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.found.add(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_training_step_has_fused_attention(kind):
    x, t = torch.randn(2, *SHAPE), torch.rand(2)
    network = NETWORKS[kind]()
    for tracked, fused in ((x, True), (x.clone().requires_grad_(), False)):
        with Names() as names:
            network(tracked, t).square().sum().backward()
        assert any("flash_attention" in name for name in names.found) == fused


@pytest.mark.parametrize("few", [1024, 0])
def test_attention_in_half_precision(few, monkeypatch):
    """By its two products or fused, it is attention to the digits that bfloat16 has."""
    monkeypatch.setattr(blocks, "UNFUSED_POSITIONS", few)
    q, k, v = torch.randn(3, 2, 2, 7, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, exact = blocks.attended(q, k, v), F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.01)
