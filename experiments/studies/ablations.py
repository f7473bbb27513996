"""The ablations of this package, whose reports are in docs/results, for `unnoise ablate NAME`.

All train in a minute a run or less on one core, on the bundled data.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ablation import Ablation, Setup
from .ablation_of_minutes import fast_digits
from .ablation_settings import digits, families, icons
from .ablations_of_parts import d3pm_parts, d3pm_text_parts, ddpm_parts
from .ablations_of_sampling import averages, guidance, predictor_corrector, samplers


def three_families() -> Ablation:
    """The three families on the same quantized digits, with one network and one budget."""
    found = families(digits, 1000, 4e-4)
    return Ablation(
        Setup(found["DDPM"], count=150, samples=300),
        {"family": found},
        title="Three families on the same quantized digits",
        question=(
            "A DDPM, a D3PM with discretized Gaussian transitions and a VP score SDE, on the same 8 x 8 digits of 17 "
            "quantization levels, with the same U-Net, optimizer, number of images and sampling steps. Code lengths "
            "of DDPM and D3PM are upper bounds, that of the SDE is exact up to uniform dequantization, and itself an "
            "upper bound for the quantized digits: all are bits/dim of the same data."
        ),
        shows=(
            "At equal images, network and training the VP score SDE has the shortest code lengths, then the DDPM, then "
            "the D3PM as published (residual head, product reverse model). By the distance of 300 samples the DDPM has "
            "the best mean, and three seeds do not tell the families apart. Not shown: what each family is at its "
            "best. The D3PM of the recipe `d3pm-digits`, with a direct head and the exact reverse model, came to 2.18 "
            "+- 0.06 bits/dim and a distance of 4.5 in the same training, so that the choice of parts within a family "
            "matters as much as the family; DDPM and D3PM are measured by bounds, and the SDE by its probability flow."
        ),
    )


def three_families_icons() -> Ablation:
    """The three families on openmoji32 at 16 x 16 pixels in 16 quantization levels."""
    found = families(icons, 450, 4e-4)
    return Ablation(
        Setup(found["DDPM"], count=100, samples=250),
        {"family": found},
        title="Three families on the same quantized icons",
        question=(
            "A DDPM, a D3PM with discretized Gaussian transitions and a VP score SDE on openmoji32 at 16 x 16 pixels, "
            "in color, in 16 quantization levels, without labels, with the same U-Net, optimizer, number of images and "
            "sampling steps. All code lengths are bits/dim of the same data, as on digits."
        ),
        shows=(
            "After 450 steps the DDPM has the shortest code lengths (1.55 bits/dim), the score SDE follows (1.71), and "
            "the D3PM is far behind (2.46): with 16 categories for each of 768 values it learns slowest, which was so "
            "on digits too. By the distance of 250 samples DDPM and D3PM are alike and far from real icons (22 and 21, "
            "beside 3 of held-out ones), and the SDE's seeds differ most (34 to 85). Not shown: trained models. All "
            "three would need many times this budget to draw icons; what is compared is how far each comes in it."
        ),
    )


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "ddpm-parts": ddpm_parts,
    "d3pm-parts": d3pm_parts,
    "d3pm-text-parts": d3pm_text_parts,
    "samplers": samplers,
    "predictor-corrector": predictor_corrector,
    "averages": averages,
    "guidance": guidance,
    "fast-digits": fast_digits,
    "three-families": three_families,
    "three-families-icons": three_families_icons,
}
"""The ablations by name."""
