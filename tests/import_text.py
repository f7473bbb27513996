"""Settings and weights of small text models, for the tests of their importers."""

from functools import cache

from helpers import peer_state

MDLM = {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear", "length": 24, "n_heads": 4}
SEDD = {"uniform": False, "noise": "loglinear", "scale_by_sigma": True, "length": 24, "n_heads": 4}
GEOMETRIC = {"noise": "geometric", "sigma_min": 1e-3, "sigma_max": 8.0}
ROTARY = "rotary_emb.inv_freq"


@cache
def state_of(name, rotary=True):
    """The state dict of a fixture, with or without its rotary frequencies."""
    return {k: v for k, v in peer_state(name).items() if rotary or not k.endswith(ROTARY)}
