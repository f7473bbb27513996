"""The trainer, its settings, and the checkpoints that it writes."""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .averages import Average, Decay, HalfLife, PowerFunction
    from .checkpoint import Checkpoint, load
    from .config import Training
    from .trainer import Trainer

__all__ = ["Average", "Checkpoint", "Decay", "HalfLife", "PowerFunction", "Trainer", "Training", "load"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "averages": "Average Decay HalfLife PowerFunction",
        "checkpoint": "Checkpoint load",
        "config": "Training",
        "trainer": "Trainer",
    },
)
