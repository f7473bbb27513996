"""What takes gradients gives the same numbers inside `torch.inference_mode()`, where all but the network is made."""

import pytest
import torch
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierGuided, NoisyClassifier
from unnoise.shared.gaussian.inverse import DPS, Masked, MomentMatching, PseudoInverse
from unnoise.shared.networks import MLP, Encoder, UNet


def randomized(network):
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return network.eval()


class Counting(nn.Module):
    """`log p(label | x)` of one-hot tokens, by how often each stands there."""

    def forward(self, hot, t, label):
        return hot.sum(1).log_softmax(-1).gather(-1, label[:, None])[:, 0]


def unet(**further):
    return randomized(UNet((1, 4, 4), width=8, multipliers=(1,), blocks=1, attention=(), **further))


def seeded():
    return torch.Generator().manual_seed(0)


def likelihood(network, trace=None):
    coded = sde.ChangeOfVariables(sde.Learned(network, sde.VP()), trace=trace, integrator=sde.Adaptive(0.1, 0.1))
    x0 = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    return coded(x0, generator=seeded(), label=torch.tensor([0, 2])).nats


def guided(networks):
    classifier = NoisyClassifier(networks[1], sde.VP())
    denoiser = ClassifierGuided(sde.Learned(networks[0], sde.VP()), classifier, 2.0)
    return continuous.DDIM(denoiser)(shape=(2, 1, 4, 4), steps=3, generator=seeded(), label=torch.tensor([1, 2]))


def guided_likelihood(networks):
    denoiser = ClassifierGuided(sde.Learned(networks[0], sde.VP()), NoisyClassifier(networks[1], sde.VP()), 2.0)
    coded = sde.ChangeOfVariables(denoiser, integrator=sde.Adaptive(0.1, 0.1))
    return coded(torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4), generator=seeded(), label=torch.tensor([0, 2])).nats


def measured():
    return Masked(torch.tensor([True, True, False, False])), torch.ones(2, 1, 4, 4)


def posterior(method, network):
    denoiser = method(sde.Learned(network, sde.VP()), *measured())
    return continuous.DDIM(denoiser)(shape=(2, 1, 4, 4), steps=3, generator=seeded(), label=torch.tensor([1, 2]))


def dps(network):
    sampler = DPS(continuous.DDIM(sde.Learned(network, sde.VP())), *measured())
    return sampler(shape=(2, 1, 4, 4), steps=3, generator=seeded(), label=torch.tensor([1, 2]))


def energy(network):
    return continuous.DDIM(sde.EnergyDenoiser(network, sde.VP()))(shape=(4, 2), steps=3, generator=seeded())


def annealed(network):
    return sde.log_normalizing_constant(
        sde.EnergyDenoiser(network, sde.VP()), (16, 2), distributions=5, generator=seeded()
    ).log_w


def guided_tokens(network):
    chain = discrete.Uniform(3, discrete.LogLinearNoise())
    denoiser = discrete.ClassifierGuided(discrete.Categorical(network, chain), Counting(), 2.0)
    label = torch.tensor([0, 1, 2, 0])
    return discrete.Ancestral(denoiser)(shape=(4, 6), steps=3, generator=seeded(), label=label).float()


class Tokens(nn.Module):
    """Logits of each position by its own token."""

    conditions = ()

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 3)

    def forward(self, x, time):
        return self.table(x)


def both():
    return unet(), randomized(Encoder((1, 4, 4), 3, 8, (1,), 1, ()))


def potential():
    return randomized(sde.Potential(MLP(2)))


CALLS = {
    "likelihood": (likelihood, lambda: unet(classes=3)),
    "likelihood of several probes": (lambda network: likelihood(network, sde.Hutchinson(3)), lambda: unet(classes=3)),
    "exact likelihood": (lambda network: likelihood(network, sde.ExactTrace()), lambda: unet(classes=3)),
    "classifier guidance": (guided, both),
    "likelihood under guidance": (guided_likelihood, both),
    "Pi-GDM": (lambda network: posterior(PseudoInverse, network), lambda: unet(classes=3)),
    "moment matching": (lambda network: posterior(MomentMatching, network), lambda: unet(classes=3)),
    "DPS": (dps, lambda: unet(classes=3)),
    "energy": (energy, potential),
    "normalizer": (annealed, potential),
    "guided tokens": (guided_tokens, lambda: randomized(Tokens())),
}


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_changes_nothing(name):
    call, build = CALLS[name]
    network = build()
    expected = call(network)
    with torch.inference_mode():
        found = call(network)
    assert expected.isfinite().all()
    assert torch.equal(found, expected)


def test_a_network_of_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(UsageError, match="built inside torch.inference_mode"):
        likelihood(unet(classes=3))


def test_a_table_of_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        schedule = continuous.Tabulated(continuous.linear_betas(100))
        chain = discrete.DiscretizedGaussian(3, discrete.linear(50))
    continuous.DenoisingLoss.simple(continuous.Learned(unet(), schedule))(
        torch.zeros(2, 1, 4, 4)
    ).total.mean().backward()
    loss = discrete.D3PMLoss(discrete.Categorical(Tokens(), chain))(torch.zeros(2, 4, dtype=torch.int64)).total.mean()
    loss.backward()
    assert loss.isfinite()
