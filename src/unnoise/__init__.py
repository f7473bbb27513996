"""Three families of diffusion models: Gaussian DDPM and DDIM, categorical D3PM and score SDEs, with what they share.

The sub-packages are imported when they are first used, so `import unnoise` itself is fast and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import continuous, discrete, experiments, sde, shared
    from .experiments import load

__version__ = "0.2.0"

__all__ = ["__version__", "continuous", "discrete", "experiments", "load", "sde", "shared"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module(".experiments", __name__).load
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
