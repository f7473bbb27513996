"""Networks whose calls are recorded and replayed; a recorder of the tests stands in for CUDA."""

import pytest
import torch
from torch import nn

from unnoise.continuous import DDIM, Clipped, DPMSolverPP, Learned, LinearBetas
from unnoise.discrete import Absorbing, Ancestral, Categorical, LogLinearNoise
from unnoise.shared.cuda_graphs import CudaRecorder, Recorded, Recorder, replace_networks, with_cuda_graphs
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree
from unnoise.shared.networks import MLP, DiT, UNet
from unnoise.shared.random import Streams
from unnoise.shared.sampler import counted


class Replaying(Recorder):
    """Repeats a function on its static inputs, into one and the same output, as a CUDA graph does."""

    def __init__(self):
        self.recordings = 0

    def record(self, function):
        self.recordings += 1
        out = function()

        def replay():
            return out.copy_(function())

        return replay


def lively(module):
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    return module.eval().requires_grad_(False)


def denoiser(classes=None):
    return lively(Learned(UNet((1, 8, 8), width=8, multipliers=(1,), classes=classes), LinearBetas(50)))


def samples(sampler, rows, **cond):
    return sampler(shape=(len(rows), 1, 8, 8), steps=6, generator=Streams(0, rows), **cond)


@pytest.mark.parametrize("build", [DDIM, DPMSolverPP], ids=["DDIM", "a solver that keeps earlier outputs"])
def test_samples_of_replays_are_those_of_calls(build):
    plain, own, recorder = denoiser(), denoiser(), Replaying()
    (recorded,) = with_cuda_graphs(own, recorder)
    for count in (4, 4, 3):  # the last chunk of several is smaller
        assert torch.equal(samples(build(own), range(count)), samples(build(plain), range(count)))
    assert (recorder.recordings, recorded.replays) == (2, 3 * 6)


def test_every_form_of_the_conditions_has_its_recording():
    plain, own, recorder = denoiser(classes=3), denoiser(classes=3), Replaying()
    with_cuda_graphs(own, recorder)
    assert own.conditions == own.network.conditions == plain.network.conditions
    for label in ([0, 1], [2, 1]):
        label = torch.tensor(label)
        guided = [samples(DDIM(ClassifierFree(each, 2.0)), range(2), label=label) for each in (own, plain)]
        assert torch.equal(*guided)
        assert torch.equal(samples(DDIM(own), range(2), label=label), samples(DDIM(plain), range(2), label=label))
    assert recorder.recordings <= 3  # with labels, and what guidance calls: both at once, or without labels


def test_tokens(generator):
    def made():
        torch.manual_seed(0)
        network = DiT(Absorbing(5, LogLinearNoise()).states, 8, width=16, depth=1, heads=2, outputs=5)
        return lively(Categorical(network, Absorbing(5, LogLinearNoise())))

    plain, own = made(), made()
    (recorded,) = with_cuda_graphs(own, Replaying())
    found = [Ancestral(each)(shape=(3, 8), steps=4, generator=Streams(1, range(3))) for each in (plain, own)]
    assert torch.equal(*found)
    assert recorded.replays == 4


def test_an_output_is_not_overwritten_by_the_next_call():
    network = Recorded(lively(MLP(3, 8, 1)), Replaying())
    x, time = torch.randn(2, 3), torch.ones(2)
    with torch.no_grad():
        first = network(x, time)
        assert not torch.equal(first, network(-x, time))
        assert torch.equal(first, network.inner(x, time))


def test_evaluations_are_counted():
    own = denoiser()
    with_cuda_graphs(own, Replaying())
    with counted(own) as count:
        samples(DDIM(own), range(2))
    assert count.calls == 6


def test_weights_that_change_in_place_are_used():
    own = denoiser()
    with_cuda_graphs(own, Replaying())
    before = samples(DDIM(own), range(2))
    for p in own.parameters():
        p.mul_(1.5)
    plain = denoiser()
    for p in plain.parameters():
        p.mul_(1.5)
    after = samples(DDIM(own), range(2))
    assert torch.equal(after, samples(DDIM(plain), range(2)))
    assert not torch.equal(before, after)


def test_the_precision_of_autocast_is_part_of_a_recording():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, time):
            out = self.linear(x)
            seen.append((out.dtype, torch.is_autocast_cache_enabled()))
            return out

    recorder = Replaying()
    network = Recorded(Net().eval(), recorder)
    x, time = torch.ones(2, 4), torch.ones(2)
    with torch.no_grad():
        assert network(x, time).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x, time).dtype == torch.bfloat16
    assert recorder.recordings == 2
    assert {cached for _, cached in seen} == {False}


@pytest.mark.parametrize(
    ("words", "prepare", "cond"),
    [
        ("training mode", lambda n: n.train(), {}),
        ("gradients are enabled", lambda n: None, {}),
        ("pair is a tuple", lambda n: None, {"pair": (1, 2)}),
    ],
)
def test_other_calls_are_passed_to_the_network(words, prepare, cond):
    class Net(nn.Module):
        def forward(self, x, time, pair=None):
            return x + time[:, None]

    recorder = Replaying()
    network = Recorded(Net().eval(), recorder)
    prepare(network)
    x, time = torch.ones(2, 1), torch.ones(2)
    with torch.set_grad_enabled("gradients" in words):
        with pytest.warns(Notice, match=words):
            out = network(x, time, **cond)
        assert torch.equal(out, network(x, time, **cond))  # without a second notice, which would be an error
    assert torch.equal(out, torch.full((2, 1), 2.0))
    assert (recorder.recordings, network.replays) == (0, 0)


def test_what_cannot_be_recorded_is_one_line():
    class Broken(Recorder):
        def record(self, function):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    network = Recorded(MLP(3, 8, 1).eval(), Broken())
    with torch.no_grad(), pytest.raises(UsageError, match=r"MLP cannot be recorded .*stream is capturing\): sample"):
        network(torch.ones(2, 3), torch.ones(2))


def test_a_device_without_graphs_is_refused():
    with pytest.raises(UsageError, match=r"on cpu, and CUDA graphs exist on NVIDIA GPUs alone"):
        with_cuda_graphs(denoiser())


def test_networks_are_replaced_once():
    inner = denoiser()
    both = nn.ModuleList([Clipped(inner), inner])
    made = replace_networks(both, lambda network: Recorded(network, Replaying()))
    assert len(made) == 1
    assert isinstance(inner.network, Recorded)
    assert isinstance(inner.network.inner, UNet)
    again = with_cuda_graphs(denoiser(), Replaying())
    assert [type(network.inner) for network in again] == [UNet]


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 16])
def test_cuda_graphs_equal_calls(dtype, count):
    plain, own = denoiser().cuda(), denoiser().cuda()
    (recorded,) = with_cuda_graphs(own)
    assert isinstance(recorded.recorder, CudaRecorder)
    with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        for _ in range(2):
            found = [samples(DPMSolverPP(each), range(count)) for each in (plain, own)]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert recorded.replays == 12
