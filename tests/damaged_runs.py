"""Small runs whose files are damaged, and the one line that is expected then."""

import pytest
import torch

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.shared.data import Batches
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.folder import read_metrics

CONFIG = Training(steps=6, learning_rate=1e-2, warmup=2, log_every=1, save_every=2)


def batches():
    return Batches(
        torch.randint(0, 17, (40, 3), generator=torch.Generator().manual_seed(0)),
        8,
        Quantization(17),
        Quantization.dequantized,
    )


def objective():
    torch.manual_seed(0)
    return DenoisingLoss.simple(Learned(MLP(3, 4, 1), Tabulated(linear_betas(40))))


def refused(call, *words):
    """The error's line, which holds the words."""
    with pytest.raises(UsageError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said, said
    for word in words:
        assert word in said, said
    return said


def resume(home, config=CONFIG):
    return Trainer(objective(), config, folder=home).fit(batches(), resume=True)


class Killed(BaseException):
    """Stands for the end of a process at this moment."""


def config(**settings):
    return Training(**{**vars(CONFIG), **settings})


def train(home, resumed=False, **settings):
    watch = settings.pop("watch", None)
    trainer = Trainer(objective(), config(**settings), folder=home, watch=watch)
    return trainer.fit(batches(), resume=resumed)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def names(home):
    return sorted(p.name for p in (home / "checkpoints").iterdir())


def losses(home):
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in read_metrics(home / "metrics.jsonl")]
