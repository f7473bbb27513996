"""How costs grow: a sample and memory over the batch, losses and steps over vocabulary and length, and ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.shared.data import Batches
from unnoise.shared.distributed import processes
from unnoise.shared.networks import UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Training

from . import categorical, samplers
from .categorical import TARGETS, Size
from .machine import ROOT
from .timing import SCALING, Contender, Workload, returned, threads
from .training import through_trainer

BATCHES = (1, 4, 16, 64, 256, 1024)
VOCABULARIES = (27, 512, 4096, 32768)
LENGTHS = (64, 512, 4096)


def by_batch(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns a step of a sample, over the batch."""
    return {
        f"{name}, batch {batch}": partial(samplers.table_step, name, smoke, batch, f"{name}: a sample over the batch")
        for name in ("ancestral", "DDIM")
        for batch in (BATCHES[:1] if smoke else BATCHES)
    }


def by_size(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns losses and steps over the vocabulary K, of 2 x 256 tokens, and over the length L, at K = 256."""
    found = dict[str, Callable[[], Workload]]()
    for kind in TARGETS:
        sizes = [("K", k, Size(2, (256,), k)) for k in VOCABULARIES]
        sizes += [("L", n, Size(2, (n,), 256)) for n in LENGTHS]
        for axis, at, size in sizes[:1] if smoke else sizes:
            shown = Size(2, (3,), 7) if smoke else size
            for what, make in (("loss", categorical.loss), ("step", categorical.step)):
                series = f"{kind}: {what} over {axis}"
                found[f"{kind} {what}, {axis} = {at:,}"] = partial(make, kind, shown, None, (series, at))
    return found


def by_memory(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the peak memory of a loss in bfloat16 over the batch, at K = 32,768 and L = 256."""
    sizes = [Size(1, (3,), 7)] if smoke else [Size(b, (256,), 32768) for b in (1, 2, 4)]
    return {
        f"memory of {kind}, batch {size.batch}": partial(
            categorical.memory, kind, size, smoke, None, (f"{kind}: memory over the batch", size.batch)
        )
        for kind in (TARGETS if not smoke else [])
        for size in sizes
    }


def ranks(smoke: bool) -> Workload:
    """Returns a training step on each of two processes (gloo) beside one alone, with the same batch on each."""
    batch, steps = (2, 1) if smoke else (32, 20)

    def equal() -> str:
        alone, both = (trained(size, 4, 2).weights for size in (1, 2))
        assert abs(alone - both) <= 1e-5 * abs(alone), f"weights of 1 rank and 2 differ: {alone} and {both}"
        return "weights after two steps of one batch on 1 and 2 ranks"

    return Workload(
        name="training step, 2 ranks over 1",
        group=SCALING,
        unit="step of a rank",
        ours=Contender(lambda: trained(2, 2 * batch, steps).seconds),
        base="1 rank",
        references={"1 rank": Contender(lambda: trained(1, batch, steps).seconds)},
        equal=equal,
        clock=returned,
        rounds=2,
        note="processor time of the first rank",
    )


class Trained(NamedTuple):
    """The processor time of a step of the first rank, and the sum of the squares of its weights."""

    seconds: float
    weights: float


def trained(ranks: int, batch: int, steps: int) -> Trained:
    """Starts processes that train together on batches of `batch` in all, and returns what the first has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling", str(batch), str(steps)],
            cwd=ROOT,
            env=environment | {"WORLD_SIZE": str(ranks), "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(ranks)
    ]
    texts = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), f"one of {ranks} processes has failed"
    seconds, weights = map(float, texts[0].strip().splitlines()[-1].split())
    return Trained(seconds, weights)


def rank(batch: int, steps: int) -> Trained:
    """Trains on the processes that were started."""
    with threads(), processes("cpu"):
        torch.manual_seed(0)
        network = UNet((1, 8, 8), 16, (1, 2), 1, (2,), 1)
        k = torch.randint(0, 17, (256, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        objective = DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(1000))))
        seconds = through_trainer(objective, Training(), Batches(k, batch, Quantization(17)), steps)()
        return Trained(seconds, sum(float(p.detach().double().square().sum()) for p in network.parameters()))


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name."""
    more = {} if smoke else {"training step, 2 ranks over 1": partial(ranks, smoke)}
    return {**by_batch(smoke), **by_size(smoke), **by_memory(smoke), **more}


if __name__ == "__main__":
    print(*rank(int(sys.argv[1]), int(sys.argv[2])))
