"""Trains small models, for the tests of several processes: by torchrun, or in one process as `run(...)`."""

import json
import sys
from pathlib import Path

import torch

from unnoise import continuous
from unnoise.shared.data import Batches
from unnoise.shared.distributed import is_main, processes, rank
from unnoise.shared.gaussian.guidance import ConditionDropout
from unnoise.shared.networks import UNet
from unnoise.shared.objective import Stratified
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import uniform
from unnoise.shared.tensors import like
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.averages import HalfLife, PowerFunction
from unnoise.shared.training.parallel import Replicated, Sharded

LEVELS, TABLE = Quantization(17), continuous.CosineBetas(8)
PARALLEL = {"replicated": Replicated(), "sharded": Sharded()}


def flipped(quantization, k, generator=None):
    mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
    return quantization.dequantized(torch.where(mirror, k.flip(-1), k), generator)


def objective(kind="simple"):
    torch.manual_seed(rank() if kind == "unseeded" else 0)
    network = UNet((1, 8, 8), width=8, multipliers=(1, 2), blocks=1, dropout=0.3, classes=4)
    denoiser = continuous.Learned(network, TABLE)
    if kind == "importance":
        return continuous.ImportanceSampling(continuous.Variational(denoiser, LEVELS), history=2)
    inner = continuous.DenoisingLoss.simple(denoiser, times=Stratified())
    return ConditionDropout(inner, 0.3)


def batches(kind="simple"):
    k = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    form = Quantization.continuous if kind == "importance" else flipped
    return Batches(k, 12, LEVELS, form, {"label": torch.arange(40) % 4}, seed=3)


def run(folder, steps, parallel="replicated", micro_batch=None, resume=False, kind="simple", **settings):
    """Trains into a folder and returns the averaged objective."""
    config = Training(
        steps=steps,
        learning_rate=1e-3,
        warmup=2,
        log_every=1,
        save_every=6,
        averages=(PowerFunction(0.1), HalfLife(100)),
        snapshot_every=6,
        micro_batch=micro_batch,
        parallel=PARALLEL[parallel],
        device="cpu",
        **settings,
    )
    return Trainer(objective(kind), config, folder=folder).fit(batches(kind), resume=resume)


def losses(folder):
    return [json.loads(line)["loss"] for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes("cpu"):
        for arguments in json.loads(Path(sys.argv[1]).read_text()):
            run(**arguments)
            if is_main():
                print("trained", arguments["folder"], flush=True)
