"""Training, sampling and checkpoints on the device of this machine: a GPU where there is one, else the CPU.

`pytest -m device` on a machine with a GPU compares it with the CPU.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unnoise.continuous import DDIM, DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments.evaluation import draw
from unnoise.experiments.papers import ddpm, edm, mdlm, score_sde
from unnoise.shared.cuda_graphs import with_cuda_graphs
from unnoise.shared.data import Batches
from unnoise.shared.networks import UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, normal, uniform
from unnoise.shared.training import Trainer, Training, load

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("default")]  # compilers and drivers warn
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_A_GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="this machine has no NVIDIA GPU")


def batches():
    k = torch.randint(0, 17, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Batches(k, 16, Quantization(17))


def objective(dropout=0.0):
    torch.manual_seed(0)
    network = UNet((1, 8, 8), 32, (1, 2), 1, (2,), 2, dropout=dropout)
    for p in network.parameters():
        if p.ndim > 1 and not p.any():  # layers that start at zero would hide the others
            torch.nn.init.normal_(p, std=0.1)
    return DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(100))))


def losses(device, steps=6, dropout=0.1, **settings):
    """The loss of each training step, and the averaged objective."""
    given = {"micro_batch": 16, "warmup": 2, "learning_rate": 1e-3, "log_every": 1} | settings
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(objective(dropout), Training(steps=steps, device=str(device), **given), folder=folder)
        average = trainer.fit(batches())
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines]), average


@pytest.mark.parametrize("make", [ddpm.smoke, score_sde.smoke, edm.smoke, mdlm.smoke])
def test_training_in_bfloat16_and_sampling(make, tmp_path):
    recipe = make()
    data = recipe.load("train")
    config = replace(recipe.training, device=str(DEVICE), precision="bfloat16", watch_every=0)
    torch.manual_seed(0)
    trainer = Trainer(
        recipe.objective(data.shape, data.quantization), config, folder=tmp_path / "run", experiment=recipe
    )
    average = trainer.fit(recipe.batches(data))
    assert all(p.device.type == DEVICE.type and p.dtype == torch.float32 for p in average.parameters())
    run = draw(recipe, recipe.sampler_of(average.denoiser), data.shape, data.quantization, 3, recipe.sampling_steps)
    assert run.levels.shape == (3, *data.shape)
    assert ((run.levels >= 0) & (run.levels < data.quantization.levels)).all()


def test_losses_in_bfloat16_and_tf32_are_near_those_in_float32():
    reference, _ = losses("cpu", dropout=0.0)
    for precision, tolerance in (("float32", 1e-3), ("tf32", 5e-3), ("bfloat16", 3e-2)):
        found, _ = losses(DEVICE, dropout=0.0, precision=precision)
        torch.testing.assert_close(found, reference, rtol=tolerance, atol=0)


def test_losses_with_dropout_are_those_of_the_cpu():
    reference, _ = losses("cpu")
    found, _ = losses(DEVICE)
    torch.testing.assert_close(found, reference, rtol=1e-3, atol=0)
    assert (reference - losses("cpu", dropout=0.0)[0]).abs().max() > 1e-3


def test_channels_last_changes_no_loss():
    reference, _ = losses(DEVICE)
    found, average = losses(DEVICE, channels_last=True)
    torch.testing.assert_close(found, reference, rtol=1e-3, atol=0)
    kernels = [p for p in average.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams_are_those_of_the_cpu(dtype):
    rows = torch.tensor([3, 0, 12345])
    for of, tolerance in ((uniform, 0), (normal, 1e-5)):
        here = of((3, 5, 7), Streams(4, rows), dtype=dtype, device="cpu")
        there = of((3, 5, 7), Streams(4, rows.to(DEVICE)), dtype=dtype, device=DEVICE)
        assert there.device.type == DEVICE.type
        torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance)


def test_a_checkpoint_of_the_device_is_read_on_the_cpu_and_back(tmp_path):
    config = Training(steps=3, device=str(DEVICE), micro_batch=16)
    average = Trainer(objective(), config, folder=tmp_path).fit(batches())
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        expected = average.denoiser(x.to(DEVICE), t.to(DEVICE)).cpu()
        for device in ("cpu", DEVICE):
            found = load(tmp_path, device=device).average.denoiser
            assert next(found.parameters()).device.type == torch.device(device).type
            torch.testing.assert_close(found(x.to(device), t.to(device)).cpu(), expected, rtol=1e-2, atol=1e-2)


def test_samples_are_those_of_the_cpu():
    _, average = losses("cpu", steps=3)
    found = {}
    for device in ("cpu", DEVICE):
        sampler = DDIM(average.denoiser.to(device))
        x = normal((2, 1, 8, 8), Streams(0, range(2)), device=device)
        found[str(device)] = sampler(x, steps=5, generator=Streams(1, range(2))).cpu()
    torch.testing.assert_close(found[str(DEVICE)], found["cpu"], rtol=1e-2, atol=1e-2)


@ON_A_GPU
def test_a_compiled_step_has_the_same_losses_and_compiles_once():
    from torch._dynamo.utils import counters

    reference, _ = losses(DEVICE, steps=12)
    counters.clear()
    found, _ = losses(DEVICE, steps=12, compile=True)
    torch.testing.assert_close(found, reference, rtol=1e-2, atol=0)
    assert sum(counters["recompiles"].values()) <= 2


def test_dropout_does_not_divide_a_compiled_step(monkeypatch):
    from torch._dynamo.utils import counters

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    reference, _ = losses("cpu", steps=3)
    counters.clear()
    found, _ = losses("cpu", steps=3, compile=True)
    assert torch.equal(found, reference)
    assert counters["stats"]["unique_graphs"] <= 6
    assert not [reason for reason in counters["graph_break"] if "Dropout" in reason]


@ON_A_GPU
def test_cuda_graphs_draw_the_same_samples():
    _, average = losses(DEVICE, steps=2)
    x = torch.randn(4, 1, 8, 8, device=DEVICE)
    plain = DDIM(average.denoiser)(x, steps=6, generator=Streams(0, range(4)))
    (recorded,) = with_cuda_graphs(average.denoiser)
    replayed = DDIM(average.denoiser)(x, steps=6, generator=Streams(0, range(4)))
    assert recorded.replays == 6
    torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-4)


def test_micro_batches_have_the_losses_of_the_whole_batch():
    reference, _ = losses(DEVICE)
    for micro_batch in (5, None):
        found, _ = losses(DEVICE, micro_batch=micro_batch)
        torch.testing.assert_close(found, reference, rtol=1e-3, atol=0)
