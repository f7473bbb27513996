"""Linear inverse problems: samples from `p(x_0 | y)` for `y = A x_0 + sigma_y n`, with an unconditional model of x_0.

`MomentMatching` and `PseudoInverse` are denoisers of the posterior, which work with every sampler, schedule and
likelihood. `DPS` and `Replacement` change the state around a sampler's steps. For measurements that are not linear, see
`guidance.ClassifierGuided`, which samples `p(x_0 | label)` with a classifier trained on noisy signals.
"""

from .measurement import Measurement
from .operators import Averaged, Gray, Masked, MatrixOperator, Operator
from .posterior import MomentMatching, Posterior, PseudoInverse
from .samplers import DPS, Replacement

__all__ = [
    "DPS",
    "Averaged",
    "Gray",
    "Masked",
    "MatrixOperator",
    "Measurement",
    "MomentMatching",
    "Operator",
    "Posterior",
    "PseudoInverse",
    "Replacement",
]
