"""Conditions that are dropped in training, and what stands for them in sampling."""

import math

import pytest
import torch
from helpers import Recorded, Recording

from unnoise import sde
from unnoise.continuous import DenoisingLoss, Learned
from unnoise.shared.gaussian.guidance import ClassifierFree, ConditionDropout
from unnoise.shared.networks import CaptionEncoder, UNet


@pytest.mark.parametrize("null", [7, torch.tensor(7)])
def test_a_given_null(null):
    network = Recording()
    ClassifierFree(Learned(network, sde.VP()), 1.0, null=null)(
        torch.zeros(4, 2), torch.tensor(0.5), label=torch.arange(4)
    )
    assert torch.equal(network.seen[0], torch.arange(4))
    assert torch.equal(network.seen[1], torch.full((4,), 7))


def test_condition_dropout_takes_labels_from_its_share(generator):
    network = Recording()
    objective = ConditionDropout(DenoisingLoss.simple(Learned(network, sde.VP())), p=0.2, null=3)
    label = torch.arange(20_000) % 3
    objective(torch.zeros(20_000, 1), generator=generator, label=label)
    dropped = network.seen[0] == 3
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=3 * math.sqrt(0.16 / 20_000))
    assert torch.equal(network.seen[0][~dropped], label[~dropped])
    assert objective.denoiser is objective.objective.denoiser
    assert len([n for n, _ in objective.named_parameters()]) == len(list(objective.denoiser.parameters()))


@pytest.mark.parametrize(
    ("condition", "value"),
    [("label", torch.tensor([0, 2, 1, 0])), ("vector", torch.randn(4, 3)), ("tokens", torch.tensor([[1, 2]] * 4))],
)
def test_dropped_conditions_are_what_sampling_without_them_sees(condition, value, generator):
    """The null of training is the null of sampling, and a learned one gets its gradient."""
    torch.manual_seed(0)
    tokens = CaptionEncoder(5, 3, 8, 1, 1) if condition == "tokens" else None
    network = UNet((1, 4, 4), 8, (1,), 1, (1,), 1, classes=3, vector=3, tokens=tokens)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model, x0 = Learned(network, sde.VP()), torch.randn(4, 1, 4, 4, generator=generator)
    always = ConditionDropout(DenoisingLoss.simple(model), p=1 - 1e-9, condition=condition)
    t, noise = torch.full((4,), 0.5, dtype=torch.float64), torch.randn(4, 1, 4, 4, generator=generator)

    class Source(Recorded):
        def uniform(self, shape, dtype, device):
            return torch.zeros(tuple(shape))

    loss = always.at(x0, t, generator=Source(noise), **{condition: value})
    without = DenoisingLoss.simple(model).at(x0, t, generator=Recorded(noise))
    torch.testing.assert_close(loss.total, without.total)
    loss.total.sum().backward()
    if condition == "vector":
        assert float(network.null_vector.grad.abs().sum()) > 0
