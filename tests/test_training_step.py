"""What a training step computes: precisions, loss scaling, the micro-batch that fits, compilation."""

import json
from dataclasses import replace

import processes
import pytest
import torch

from unnoise import continuous
from unnoise.shared.data import Batches
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.networks.dropout import Dropout
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training, config, load
from unnoise.shared.training.parallel import Replicated, Sharded, blocks
from unnoise.shared.training.precision import PRECISIONS, precision_of

CONFIG = Training(steps=6, warmup=0, learning_rate=1e-2, log_every=1, save_every=3, device="cpu")


def objective(**options):
    torch.manual_seed(0)
    return continuous.DenoisingLoss.simple(continuous.Learned(MLP(4, width=16, **options), processes.TABLE))


def batches(batch=12):
    k = torch.randint(0, 17, (24, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batches(k, batch, Quantization(17))


class Small(torch.nn.Module):
    """A network whose device has memory for few examples."""

    def __init__(self, fit):
        super().__init__()
        self.inner, self.fit, self.seen = MLP(4, width=8), fit, []

    def forward(self, x, time_input, **cond):
        self.seen.append(len(x))
        if len(x) > self.fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x, time_input, **cond)


@pytest.mark.parametrize(("fit", "found"), [(5, 3), (6, 6), (1, 1)])
def test_the_largest_micro_batch_that_fits_is_found_once(fit, found):
    network = Small(fit)
    trainer = Trainer(continuous.DenoisingLoss.simple(continuous.Learned(network, processes.TABLE)), CONFIG)
    batch = batches().at(0, range(12))
    with pytest.warns(
        Notice, match=rf"micro-batches of {found} examples, because 12 do not fit.*: {12 // found} passes"
    ):
        assert trainer.compute.largest_that_fits(batch, 12) == found
    assert all(p.grad is None for p in trainer.parameters), "the trials leave no gradient"
    network.fit = 0
    with pytest.raises(
        UsageError, match=r"one example does not fit into the memory of the device: give recompute=True"
    ):
        trainer.compute.largest_that_fits(batch, 12)


def test_one_gpu_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setattr(config, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="device=cuda:0: 2 processes would share one GPU: give auto"):
        Training(device="cuda:0").chosen_device()


def test_a_step_that_does_not_fit_names_the_remedy():
    for size, remedy in ((6, "6 examples do not .* give micro_batch=3"), (1, "one example does not .* recompute=True")):
        made = continuous.DenoisingLoss.simple(continuous.Learned(Small(0), processes.TABLE))
        with pytest.raises(UsageError, match=remedy):
            Trainer(made, replace(CONFIG, micro_batch=size)).fit(batches())


@pytest.mark.parametrize(("parallel", "tried"), [(Replicated(), True), (Sharded(), False)])
def test_the_micro_batch_of_divided_weights_is_not_tried(parallel, tried, monkeypatch):
    """A trial would leave its gradient in the gathered weights, which the first step would add to its own."""
    compute, tries = Trainer(objective(), CONFIG).compute, []
    compute.parallel, compute.device = parallel, torch.device("meta")
    monkeypatch.setattr(compute, "largest_that_fits", lambda batch, size: tries.append(size))
    compute.prepare(batches().at(0, range(12)), 12)
    assert tries == [12] * tried


def test_a_given_micro_batch_bounds_what_the_network_sees():
    network = Small(5)
    config = replace(CONFIG, micro_batch=5, steps=2)
    Trainer(continuous.DenoisingLoss.simple(continuous.Learned(network, processes.TABLE)), config).fit(batches())
    assert network.seen == [4] * 6, "12 examples in three equal parts, twice"


@pytest.mark.parametrize("name", [*PRECISIONS, "auto"])
def test_every_precision_trains_the_same_model(name, tmp_path):
    """Roughly: the first losses are those of float32 within the precision's rounding; weights stay float32."""
    reference, folder = tmp_path / "reference", tmp_path / "run"
    Trainer(objective(), CONFIG, folder=reference).fit(batches())
    average = Trainer(objective(), replace(CONFIG, precision=name), folder=folder).fit(batches())
    assert {p.dtype for p in average.parameters()} == {torch.float32}
    exact, rough = (processes.losses(f)[:2] for f in (reference, folder))
    assert rough == pytest.approx(exact, rel=0.02)
    chosen = precision_of(name, torch.device("cpu"))[0]
    assert (rough == exact) is (chosen.autocast is None)


def test_float16_scales_the_loss_and_skips_what_overflows(tmp_path):
    config = replace(CONFIG, precision="float16")
    trainer = Trainer(objective(), config)
    step, batch = trainer.compute, batches().at(0, range(12))
    scale = step.scaler.get_scale()
    assert scale == 65536
    before = [p.detach().clone() for p in trainer.parameters]
    step.loss(batch, 0, 12)
    unscaled = [p.grad / scale for p in trainer.parameters]
    plain = Trainer(objective(), CONFIG)
    plain.compute.loss(batch, 0, 12)
    for p, q in zip(unscaled, plain.parameters, strict=True):
        torch.testing.assert_close(p, q.grad, rtol=0.05, atol=2e-3)
    trainer.parameters[0].grad[:] = torch.inf
    assert not torch.isfinite(step.update(0))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True)), "the step is skipped"
    assert step.scaler.get_scale() == scale / 2


def test_steps_by_which_float16_finds_its_scale_do_not_end_the_run(tmp_path):
    """With a line each step, of which the first overflow."""
    trainer = Trainer(objective(), replace(CONFIG, precision="float16"), folder=tmp_path)
    trainer.compute.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    trainer.fit(batches())
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["skipped"] == first["step"] - 1


def test_the_scale_of_the_loss_is_resumed(tmp_path):
    config = replace(CONFIG, precision="float16")
    Trainer(objective(), config, folder=tmp_path / "whole").fit(batches())
    Trainer(objective(), replace(config, steps=3), folder=tmp_path / "half").fit(batches())
    state = load(tmp_path / "half").description["scaler"]
    assert state["scale"] == 65536
    assert state["_growth_tracker"] == 3
    resumed = Trainer(objective(), config, folder=tmp_path / "half")
    resumed.fit(batches(), resume=True)
    assert resumed.compute.scaler.state_dict()["_growth_tracker"] == 6
    a, b = (load(tmp_path / name).tensors for name in ("whole", "half"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match=r"parallel=Sharded\(\) divides weights among processes, and there is one"):
        Trainer(objective(), replace(CONFIG, parallel=Sharded()))
    linear = continuous.DenoisingLoss.simple(continuous.Learned(Linear(), processes.TABLE))
    with pytest.raises(UsageError, match=r"recompute=True: the network has no blocks"):
        Trainer(linear, replace(CONFIG, recompute=True)).fit(batches())


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, time_input, **cond):
        return self.layer(x)


def test_recomputed_activations_are_not_kept():
    """The blocks run once more in the backward pass, with the same dropout; afterwards as before."""
    losses = []
    for recompute in (False, True):
        trained = processes.objective()
        inside, calls = blocks(trained), []
        inside[0].norm1.register_forward_hook(lambda *_, found=calls: found.append(1))
        trainer = Trainer(trained, replace(CONFIG, steps=1, recompute=recompute))
        trainer.fit(processes.batches())
        assert "forward" not in vars(inside[0])
        losses.append((len(calls), [p.detach().clone() for p in trainer.parameters]))
    assert losses[1][0] == 2 * losses[0][0]
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))


class Noisy(torch.nn.Module):
    """A small network with dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.dropout = MLP(4, width=16), Dropout(0.3)

    def forward(self, x, time_input, **cond):
        return self.dropout(self.inner(x, time_input, **cond))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # of torch's compiler
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_is_an_ordinary_one(tmp_path, monkeypatch, backend):
    """Its losses are those of the run that was not compiled, and so are the names in its checkpoint."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile(module, backend=backend))
    torch._dynamo.reset()
    graphs, counters = [], torch._dynamo.utils.counters["stats"]
    for compiled in (False, True):
        torch.manual_seed(0)
        loss = continuous.DenoisingLoss.simple(continuous.Learned(Noisy(), processes.TABLE))
        config = replace(CONFIG, compile=compiled, steps=12, watch_every=4)
        watch = lambda average, step: graphs.append(counters["unique_graphs"])  # noqa: E731
        Trainer(loss, config, folder=tmp_path / str(compiled), watch=watch).fit(batches())
    assert processes.losses(tmp_path / "True") == pytest.approx(processes.losses(tmp_path / "False"), rel=1e-4)
    plain, compiled = (load(tmp_path / name, network=Noisy()).tensors for name in ("False", "True"))
    assert plain.keys() == compiled.keys()
    assert graphs[2] < graphs[3] == graphs[5], "it is compiled in the first steps, and not again"


def test_channels_last_computes_the_same(tmp_path):
    for last in (False, True):
        config = replace(CONFIG, channels_last=last)
        Trainer(processes.objective(), config, folder=tmp_path / str(last)).fit(processes.batches())
    assert processes.losses(tmp_path / "True") == pytest.approx(processes.losses(tmp_path / "False"), rel=1e-4)
    assert load(tmp_path / "True").step == CONFIG.steps
