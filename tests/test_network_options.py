"""What networks and the denoisers around them refuse, and what they keep."""

import copy

import pytest
import torch

from unnoise.sde import EDM, VE, VP, Learned, SubVP
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree, ClassifierGuided, NoisyClassifier
from unnoise.shared.gaussian.prediction import scaled_score
from unnoise.shared.networks import Encoder, UNet
from unnoise.shared.networks.embeddings import FourierFeatures


def awake(network):
    """The network with no parameter at zero."""
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


def test_attention_factors_are_those_of_the_resolutions():
    """Not pixels: attention that no resolution has would be left out without a word."""
    for attention in ((16, 8), (3,), (4,)):
        with pytest.raises(UsageError, match=r"down-sampling factors among \[1, 2\], not pixels"):
            UNet((1, 8, 8), 8, (1, 2), 1, attention)
    UNet((1, 8, 8), 8, (1,), 1)  # the default, without a place for it


def test_a_variant_is_an_object_and_tokens_have_an_encoder():
    with pytest.raises(UsageError, match="variant='ddpm': give a UNetVariant"):
        UNet((1, 8, 8), 8, variant="ddpm")
    with pytest.raises(UsageError, match="tokens=7: give the encoder"):
        UNet((1, 8, 8), 8, tokens=7)
    with pytest.raises(UsageError, match="must be"):
        UNet((1, 0, 8), 8)


def test_one_time_for_all_rows():
    network, x = awake(UNet((1, 8, 8), 8, (1,), 1)), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(network(x, torch.tensor(5.0)), network(x, torch.full((3,), 5.0)))


def test_fourier_frequencies_keep_their_digits():
    """Phases of hundreds of turns mean nothing in half precision: the frequencies stay in float32, as they were."""
    waves = FourierFeatures(16, 16.0)
    before, label = waves.frequencies.clone(), torch.tensor([3.9])
    expected = waves(label)
    for cast in (torch.Tensor.bfloat16, torch.Tensor.half):
        network = copy.deepcopy(waves)
        network = network.to(cast(torch.zeros(())).dtype)
        assert network.frequencies.dtype == torch.float32
        torch.testing.assert_close(network.frequencies, before)
        torch.testing.assert_close(network(label), expected)
    assert waves.double().frequencies.dtype == torch.float64


def test_guidance_refuses_networks_that_have_no_null():
    network = UNet((1, 8, 8), 8, (1,), 1, classes=3, null_label=False)
    with pytest.raises(UsageError, match="this network has no value for an absent label"):
        ClassifierFree(Learned(network, VP()), w=1.0)
    with pytest.raises(
        UsageError, match="ClassifierGuided is a NoisyClassifier: give a Gaussian denoiser as first argument"
    ):
        ClassifierGuided(NoisyClassifier(Encoder((1, 8, 8)), VP()), Learned(network, VP()))


@pytest.mark.parametrize("home", [VE(), SubVP(), VP()], ids=lambda s: type(s).__name__)
def test_unscaled_inputs_are_brought_to_the_scale_of_the_home(home):
    """`scaled=False`.

    Under another schedule x_t is multiplied by alpha_home / alpha, and so x_0 is the same at equal log-SNR.
    """
    model = Learned(awake(UNet((1, 8, 8), 8, (1,), 1)), home, scaled_score, scaled=False).double()
    t = torch.tensor([0.3, 0.5], dtype=torch.float64)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    alpha = home(t)[0].view(-1, 1, 1, 1)
    for other in (VP(), EDM(), SubVP()):
        s = other.time(home.log_snr(t))
        there = x / alpha * other(s)[0].view(-1, 1, 1, 1)
        torch.testing.assert_close(model.on(other)(there, s), model(x, t), rtol=1e-5, atol=1e-6)
