"""Linear inverse problems: samples of `p(x_0 | y)` for `y = A x_0 + sigma_y n` from a model of x_0 alone.

`MomentMatching` and `PseudoInverse` are denoisers of the posterior, so every sampler, schedule and likelihood takes
them; `DPS` and `Replacement` are hooks around a sampler's steps. Their sibling for measurements that are not linear is
`guidance.ClassifierGuided`, which draws `p(x_0 | label)` through a classifier that has learnt the likelihood of noisy
signals.
"""

from .measurement import Measurement
from .operators import Averaged, Dense, Gray, Masked, Operator
from .posterior import MomentMatching, Posterior, PseudoInverse
from .samplers import DPS, Replacement

__all__ = [
    "DPS",
    "Averaged",
    "Dense",
    "Gray",
    "Masked",
    "Measurement",
    "MomentMatching",
    "Operator",
    "Posterior",
    "PseudoInverse",
    "Replacement",
]
