"""Small runs, stopped and gone on with."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.shared.data import Batches
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

CONFIG = Training(steps=6, learning_rate=1e-2, warmup=2, log_every=3, save_every=3)


def batches(features=6, levels=17):
    k = torch.randint(0, levels, (40, features), generator=torch.Generator().manual_seed(0))
    return Batches(k, 8, Quantization(levels), Quantization.dequantized)


class Own(nn.Module):
    """Two layers, declared in either order: the names are the same, and the order of the parameters is not."""

    def __init__(self, order=("first", "second")):
        super().__init__()
        for name in order:
            torch.manual_seed(len(name))
            setattr(self, name, nn.Linear(6, 8) if name == "first" else nn.Linear(8, 6))
        self.unused = nn.Parameter(torch.zeros(3))  # a module's own parameters come before those of its layers

    def forward(self, x, label):
        return self.second(torch.tanh(self.first(x)))


def objective(network=None, frozen=(), **options):
    torch.manual_seed(0)
    network = MLP(6, 16, 1) if network is None else network
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    return DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(40)), **options))


def stopped_at_three(folder, make=objective, config=CONFIG):
    Trainer(make(), config, folder=folder).fit(batches())
    shutil.rmtree(folder / "checkpoints" / "00000006")


def resumed(folder, make=objective, config=CONFIG, data=None):
    trainer = Trainer(make(), config, folder=folder)
    trainer.fit(batches() if data is None else data, resume=True)
    return trainer


def slots(trainer):
    """The optimizer's state by name."""
    names = {p: name.replace("_orig_mod.", "") for name, p in trainer.objective.named_parameters()}
    return {names[p]: found for p, found in trainer.optimizer.state.items()}


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def by_number(home, names):
    """Rewrites a checkpoint as earlier versions wrote it: the optimizer's state by place, and no digests."""
    tensors, description = load_file(home / "tensors.safetensors"), json.loads((home / "checkpoint.json").read_text())
    del description["digest"], description["frozen"]
    for key in [k for k in tensors if k.startswith("optimizer.")]:
        name, _, slot = key.removeprefix("optimizer.").rpartition(".")
        tensors[f"optimizer.{names.index(name)}.{slot}"] = tensors.pop(key)
    save_file(tensors, home / "tensors.safetensors")
    (home / "checkpoint.json").write_text(json.dumps(description))


def trained_names(made):
    return [name for name, p in made.named_parameters() if p.requires_grad]
