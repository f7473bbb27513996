"""The ledger: for every recipe its paper, data, network, published figures with their protocol, cost, and results here.

The published figures are those that the recipes quote. Costs are computed from the recipes. Results here stand on the
pages of docs/results.
"""

from __future__ import annotations

from .categorical import D3PM, D3PM_TEXT, MDLM, MULTINOMIAL, SEDD, TAULDR, UDLM
from .entry import Cost, Entry, Expected, Here, Paper
from .gaussian import CLASSIFIER_FREE, DDIM, DDPM, DISTILLATION, GUIDED, IMPROVED, OPENMOJI, UPSAMPLING
from .scores import BRIDGE, EDM, FAST, FLOW, INVERSE, NCSN, SCORE_SDE

__all__ = ["LEDGER", "Cost", "Entry", "Expected", "Here", "Paper", "entry_of"]
LEDGER: dict[str, Paper] = {
    "ddpm": DDPM,
    "improved-ddpm": IMPROVED,
    "ddim": DDIM,
    "guided-diffusion": GUIDED,
    "classifier-free": CLASSIFIER_FREE,
    "progressive-distillation": DISTILLATION,
    "upsampling": UPSAMPLING,
    "d3pm": D3PM,
    "d3pm-text": D3PM_TEXT,
    "multinomial": MULTINOMIAL,
    "mdlm": MDLM,
    "sedd": SEDD,
    "udlm": UDLM,
    "tauldr": TAULDR,
    "score-sde": SCORE_SDE,
    "ncsn": NCSN,
    "edm": EDM,
    "flow-matching": FLOW,
    "inverse-problems": INVERSE,
    "openmoji": OPENMOJI,
    "bridge": BRIDGE,
    "fast": FAST,
}
"""The papers with their entries, by the names of the papers as in `ddpm-digits`."""


def entry_of(recipe: str) -> tuple[Paper, Entry]:
    """Returns the paper and the entry of a recipe by its name.

    Raises:
        KeyError: for a name without an entry.
    """
    for paper in LEDGER.values():
        for entry in paper.entries:
            if entry.recipe == recipe:
                return paper, entry
    raise KeyError(recipe)
