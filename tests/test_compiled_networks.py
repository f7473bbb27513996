"""Runs of compiled networks are runs of the networks that were compiled."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import CONFIG, Own, batches, by_number, objective, resumed, same, trained_names

from unnoise.experiments import load
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.random import Streams
from unnoise.shared.training import Trainer
from unnoise.shared.training.checkpoint import list_checkpoints


def compiled(network):
    return torch.compile(network, backend="eager")


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def compiled_inside(network):
    network.layers[0] = torch.compile(network.layers[0], backend="eager")
    return network


WAYS = {"whole": compiled, "in place": compiled_in_place, "inside": compiled_inside}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler asks
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_network_leaves_ordinary_checkpoints(tmp_path, way):
    """They are loaded, and gone on with, by the plain network and the compiled one alike, bit for bit."""

    def made():
        torch.manual_seed(0)
        return objective(WAYS[way](MLP(6, 16, 1)))

    plain = Trainer(objective(), CONFIG, folder=tmp_path / "plain").fit(batches())
    average = Trainer(made(), CONFIG, folder=tmp_path / "run").fit(batches())
    assert same(plain, average)
    loaded = load(tmp_path / "run")
    assert same(plain, loaded.average)
    assert type(loaded.average.denoiser.network) is MLP
    both = [
        load_file(tmp_path / name / "checkpoints" / "00000006" / "tensors.safetensors") for name in ("plain", "run")
    ]
    assert both[0].keys() == both[1].keys()
    assert all(torch.equal(v, both[1][k]) for k, v in both[0].items())
    for folder in ("plain", "run"):
        shutil.rmtree(tmp_path / folder / "checkpoints" / "00000006")
    assert same(plain, resumed(tmp_path / "plain", made).average)
    assert same(plain, resumed(tmp_path / "run").average)


def test_a_compiled_network_of_ones_own(tmp_path):
    average = Trainer(objective(compiled(Own())), CONFIG, folder=tmp_path).fit(batches())
    with pytest.raises(UsageError, match=r"a network of your own, .*\.Own: give it"):
        load(tmp_path)
    for network in (Own(), compiled(Own())):
        loaded = load(tmp_path, network=network).average
        assert same(average, loaded)
        x = torch.randn(3, 6)
        assert torch.equal(loaded.denoiser(x, torch.tensor(0.5)), average.denoiser(x, torch.tensor(0.5)))


def test_a_run_of_a_compiled_network_of_earlier_versions_is_read(tmp_path):
    """These named the wrapper, and had its mark in every name."""
    average = Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    for home in list_checkpoints(tmp_path / "checkpoints"):
        by_number(home, trained_names(objective()))
        tensors, description = (
            load_file(home / "tensors.safetensors"),
            json.loads((home / "checkpoint.json").read_text()),
        )
        save_file(
            {k.replace("network.", "network._orig_mod."): v for k, v in tensors.items()}, home / "tensors.safetensors"
        )
        description["objective"]["arguments"]["denoiser"]["arguments"]["network"] = {
            "external": "torch._dynamo.eval_frame.OptimizedModule"
        }
        (home / "checkpoint.json").write_text(json.dumps(description))
    assert same(average, load(tmp_path, network=MLP(6, 16, 1)).average)
    shutil.rmtree(tmp_path / "checkpoints" / "00000006")
    torch.manual_seed(0)
    assert same(average, resumed(tmp_path, lambda: objective(compiled(MLP(6, 16, 1)))).average)


def test_draws_stay_outside_of_graphs():
    """Seeds are not compiled into a graph, so another seed does not compile it anew, and numbers are as without."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def noisy(x, source):
        return (x * 2 + source.uniform((2, 3), torch.float32, x.device)).sum(1)

    compiled, x = torch.compile(noisy, backend=counting), torch.ones(2, 3)
    for seed in range(12):
        drawn = (function(x, Streams(seed, torch.arange(2))) for function in (compiled, noisy))
        torch.testing.assert_close(*drawn, rtol=1e-6, atol=0)
    assert sum(node.op.startswith("call") for graph in graphs for node in graph.graph.nodes) == 3  # of x alone
