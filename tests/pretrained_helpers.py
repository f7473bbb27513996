"""Files as Song et al. (2021) and Karras et al. (2022) published them, and helpers for the tests of their importers."""

import foreign
import pytest
import torch
from helpers import assert_samples_close
from torch import nn

from unnoise.experiments.pretrained.files import read
from unnoise.experiments.pretrained.settings import Settings
from unnoise.experiments.pretrained.song import BUFFERS, names, structure
from unnoise.experiments.pretrained.weights import Converted
from unnoise.sde import EDM, SubVP
from unnoise.shared.errors import UsageError
from unnoise.shared.tensors import like

BETAS = {"beta_min": 0.1, "beta_max": 20.0}
"""Of the published files of Song et al. (2021), which are recognized by their path or a flag."""


def song_state(
    nf, ch_mult, blocks, attention, *, fourier=False, ddpm=False, enters=None, leaves=False, make=torch.zeros
):
    """A state dict with the names and shapes of the reference's networks.

    `attention` lists resolutions, 0 the full one.
    """
    state = {"module.sigmas": torch.logspace(1, -2, 1000, dtype=torch.float64)}
    count = 0

    def add(**shapes):
        nonlocal count
        for name, shape in shapes.items():
            name = name.replace("__", ".")
            parts = (
                {"": shape} if name in ("W",) or name.endswith((".W", ".b")) else {"weight": shape, "bias": shape[:1]}
            )
            for tensor, size in parts.items():
                state[".".join(p for p in ("module.all_modules", str(count), name, tensor) if p)] = make(size)
        count += 1

    def block(into, out, resizes=False):
        skip = {}
        if ddpm and into != out:
            skip = {"NIN_0__W": (into, out), "NIN_0__b": (out,)}
        elif not ddpm and (resizes or into != out):
            skip = {"Conv_2": (out, into, 1, 1)}
        first = {"GroupNorm_0": (into,), "Conv_0": (out, into, 3, 3), "Dense_0": (out, 4 * nf)}
        add(**first, GroupNorm_1=(out,), Conv_1=(out, out, 3, 3), **skip)

    def attend(c):
        add(GroupNorm_0=(c,), **{f"NIN_{n}__{k}": (c, c) if k == "W" else (c,) for n in range(4) for k in "Wb"})

    def resize(c):
        add(Conv_0=(c, c, 3, 3)) if ddpm else block(c, c, resizes=True)

    if fourier:
        add(W=(nf,))
    for out, into in ((4 * nf, (1 + fourier) * nf), (4 * nf, 4 * nf)):
        add(**{"": (out, into)})
    add(**{"": (nf, 3, 3, 3)})
    skips, image = [nf], 3
    for level, mult in enumerate(ch_mult):
        for _ in range(blocks):
            block(skips[-1], nf * mult)
            skips.append(nf * mult)
            if level in attention:
                attend(nf * mult)
        if level < len(ch_mult) - 1:
            resize(nf * mult)
            skips.append(nf * mult)
            if enters == "residual":
                add(Conv2d_0=(nf * mult, image, 3, 3))
                image = nf * mult
            if enters == "skip":
                add(Conv_0=(nf * mult, image, 1, 1))
    now = skips[-1]
    block(now, now)
    attend(now)
    block(now, now)
    for level, mult in reversed(list(enumerate(ch_mult))):
        for _ in range(blocks + 1):
            block(now + skips.pop(), nf * mult)
            now = nf * mult
        if level in attention:
            attend(now)
        if leaves or level == 0:
            add(**{"": (now,)})
            add(**{"": (3, now, 3, 3)})
        if level:
            resize(now)
    return state


def song_file(state, seed=0):
    """A file as published: the right weights among the averages alone, by their order, and noise in the model."""
    generator = torch.Generator().manual_seed(seed)
    buffers = ("module.sigmas", "module.all_modules.0.W")
    model = {k: v if k in buffers else torch.randn(v.shape, generator=generator) for k, v in state.items()}
    shadow = [v for k, v in state.items() if k not in buffers]
    ema = {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow}
    return {"optimizer": {"state": {}}, "model": model, "ema": ema, "step": 7}


def refused(call, *words):
    """A `UsageError` of one line that holds the words."""
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def shapes(state):
    """Names and shapes in order."""
    return [(name, tuple(value.shape)) for name, value in state.items()]


def assert_reads_as(preset, state):
    """A file of these names, of full size and without numbers, is read as the network that `preset` builds."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    read = structure(plain, "file.pth", Settings("file.pth", {}))
    with torch.device("meta"):
        network = preset()
    about = (network.shape[0], network.width, network.multipliers, network.blocks, network.attention, network.variant)
    assert (read.channels, read.width, read.multipliers, read.blocks, read.attention, read.variant) == about
    made = names(network, read.fourier).values()
    assert {n for name in made for n in (name.names if isinstance(name, Converted) else [name])} == plain.keys() - {
        "sigmas"
    }
    assert sum(p.numel() for p in network.parameters()) == sum(v.numel() for k, v in plain.items() if k not in BUFFERS)


def meta(*shape):
    """A tensor without numbers."""
    return torch.empty(*shape, device="meta")


def assert_scores(model, x, t, raw, score, schedule):
    """`score = -raw / sigma_t`.

    The reference's sigma is float32, in which `1 - alpha^2` near t = 0 has lost half its digits.
    """
    sigma = schedule(t.double())[1]
    log_alpha = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    theirs = 1 - torch.exp(2 * log_alpha)
    theirs = theirs if isinstance(schedule, SubVP) else theirs.sqrt()
    assert ((theirs / sigma - 1).abs() < 5e-4).all()
    assert_samples_close(model.score(x, t.double()), score * like(theirs / sigma, score).float())
    assert_samples_close(model.network(x, 999 * t), raw)
    torch.testing.assert_close(model.time_input(model.schedule, t), 999 * t)


def edm_file(path, state, name, head_width=None, **about):
    """A pickle as published: the network under `ema`, in a preconditioner called `name` with attributes `about`."""

    def build(persistent):
        @persistent
        class Part(nn.Module):
            pass

        top = persistent(type(name, (nn.Module,), {}))()
        for key, value in state.items():
            module, (*parts, last) = top, key.split(".")
            for part in parts:
                if part == "qkv" and head_width:
                    module.out_channels, module.num_heads = len(value) // 3, len(value) // 3 // head_width
                if part not in module._modules:
                    module.add_module(part, Part())
                module = module._modules[part]
            if last in ("resample_filter", "freqs", "u"):
                module.register_buffer(last, value)
            else:
                module.register_parameter(last, nn.Parameter(value))
        vars(top).update(about)
        return top

    path.write_bytes(foreign.edm_pickle(build)[0])
    return read(path)


def at_sigmas(model, sigma):
    """The denoiser on `alpha = 1`, and its times of these noise levels."""
    model = model.on(EDM()).eval()
    return model, model.corruption.time(-2 * sigma.double().log())
