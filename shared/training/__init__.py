"""The trainer, its settings, and the checkpoints that it writes."""

from .checkpoint import Checkpoint, load
from .config import Training
from .trainer import Trainer

__all__ = ["Checkpoint", "Trainer", "Training", "load"]
