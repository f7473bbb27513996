"""The trainer, its settings, and the checkpoints that it writes."""

from .averages import Average, Decay, HalfLife, PowerFunction
from .checkpoint import Checkpoint, load
from .config import Training
from .trainer import Trainer

__all__ = ["Average", "Checkpoint", "Decay", "HalfLife", "PowerFunction", "Trainer", "Training", "load"]
