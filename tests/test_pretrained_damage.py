"""Damaged and malicious checkpoints are refused with one line, and no wrong weight is loaded."""

import contextlib
import pickle
import random
import re
from collections import OrderedDict

import pytest
import torch
from helpers import peer_state
from pretrained_helpers import BETAS, refused
from torch import nn

from unnoise.experiments.pretrained import files, karras, ncsnv2, openai, pesser, song, text
from unnoise.experiments.pretrained.pickles import Record
from unnoise.experiments.pretrained.settings import Settings
from unnoise.experiments.pretrained.weights import Converted, fill, listed, stripped, tensor
from unnoise.shared.errors import UsageError

GUIDED = {
    "image_size": 16,
    "num_head_channels": 16,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
    "predict_xstart": False,
}
FORMATS = {
    "ddim_model": (pesser.denoiser, {"image_size": 16, **pesser.TRAINED}),
    "guided_diffusion_unet": (openai.denoiser, GUIDED),
    "guided_diffusion_classifier": (openai.denoiser, GUIDED),
    "score_sde_ddpm": (song.denoiser, {"image_size": 16, "sde": "subvp", **BETAS}),
    "score_sde_ddpmpp_vp": (song.denoiser, {"image_size": 32, "sde": "subvp", **BETAS}),
    "score_sde_ncsnpp_ve_skip": (song.denoiser, {"image_size": 32}),
    "ncsnv2": (ncsnv2.denoiser, {"image_size": 16}),
    "edm_ddpmpp": (karras.denoiser, {"precond": "edm", "sigma_data": 0.5}),
    "edm_adm": (karras.denoiser, {"precond": "edm", "sigma_data": 0.5, "num_head_channels": 8}),
    "mdlm_dit": (
        text.mdlm,
        {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear", "length": 24},
    ),
    "sedd_absorb": (text.sedd, {"uniform": False, "noise": "loglinear", "scale_by_sigma": True, "length": 24}),
}
OPTIONAL = {
    "guided_diffusion_unet": r"label_emb\.weight",
    "score_sde_ddpm": r"module\.sigmas",
    "score_sde_ddpmpp_vp": r"module\.sigmas",
    "edm_ddpmpp": r".*\.resample_filter|model\.map_augment\.weight",
    "edm_adm": r".*\.resample_filter|model\.map_(label|augment)\.weight",
    "mdlm_dit": r"backbone\.rotary_emb\.inv_freq",
    "sedd_absorb": r"rotary_emb\.inv_freq",
}
"""Names that a network does without, or that say nothing which it does not know."""
DAMAGES = {
    "lost": lambda v: None,
    "text": lambda v: "text",
    "a number": lambda v: torch.tensor(1.0),
    "one dimension more": lambda v: v[None],
    "one dimension fewer": lambda v: v.flatten()[:3] if v.ndim > 1 else v.new_ones(()),
    "empty": lambda v: v[:0],
    "whole numbers": lambda v: v.long(),
    "not finite": lambda v: torch.full_like(v, torch.nan),
}


TRIED = 24
"""Names of each format that are damaged, half of them the rarest, from which sizes are read."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_tensor_is_refused_in_words(name):
    """One damage to one name of each kind, such as the first block's for all blocks."""
    (load, flags), state, chosen = FORMATS[name], peer_state(name), random.Random(0)
    kinds = {}
    for key in state:
        kinds.setdefault(re.sub(r"\d+", "0", key), []).append(key)
    rare = sorted(kinds.values(), key=len)
    for n, keys in enumerate(rare[: TRIED // 2] + chosen.sample(rare, min(TRIED // 2, len(rare)))):
        key, damage = keys[0], list(DAMAGES.values())[n % len(DAMAGES)]
        if not re.fullmatch(OPTIONAL.get(name, "none"), key):
            contents = damaged(state, key, damage)
            refused(lambda c=contents: load(c, "file.pth", **flags), "file.pth")


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_a_network_does_without_loads_or_is_refused_in_words(name):
    (load, flags), state = FORMATS[name], peer_state(name)
    key = next(k for k in state if re.fullmatch(OPTIONAL[name], k))
    for damage in DAMAGES.values():
        with contextlib.suppress(UsageError):
            load(damaged(state, key, damage), "file.pth", **flags)


def damaged(state, key, damage):
    """The state with one tensor lost or replaced."""
    value = damage(state[key])
    return {k: v for k, v in state.items() if k != key} if value is None else state | {key: value}


class Network(nn.Module):
    """Twelve small layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(12)])


NAMES = {f"layers.{n}": f"l{n:02d}" for n in range(12)}
STATE = {f"l{n:02d}": torch.full((2,), float(n)) for n in range(12)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_numbers_are_loaded(dtype):
    network = Network()
    fill(network, NAMES, {k: v.to(dtype) for k, v in STATE.items()}, "file")
    assert [p.tolist() for p in network.layers] == [[n, n] for n in range(12)]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn]
)
def test_other_numbers_are_not(dtype):
    def attempt(state, *words):
        refused(lambda: fill(Network(), NAMES, state, "file"), "file: ", *words)

    of = str(dtype).removeprefix("torch.")
    attempt(
        {k: v.to(dtype) for k, v in STATE.items()},
        f"12 entries are not floating-point tensors: l00 is a tensor (2,) of {of}",
    )
    attempt({k: v.to(dtype) for k, v in STATE.items()}, "l09 is", ", and 2 more")
    attempt(
        STATE | {"l03": STATE["l03"].to(dtype)},
        f"1 entries are not floating-point tensors: l03 is a tensor (2,) of {of}; ",
    )
    attempt(STATE | {"l03": [1.0, 2.0]}, "1 entries", "l03 is a list")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    network, state = (
        Network(),
        STATE | {"l03": torch.tensor([1.0, value]), "l05": torch.tensor([value, 1.0], dtype=torch.float16)},
    )
    refused(
        lambda: fill(network, NAMES, state, "file"), "file: 2 tensors contain NaN or infinite numbers", ": l03, l05;"
    )
    assert all((p == 0).all() for p in network.parameters())
    fill(network, NAMES, STATE | {"other": torch.tensor(value)}, "file", ignored=("other",))


def test_three_shapes_are_shown_with_their_number():
    state = STATE | {f"l{n:02d}": torch.zeros(n) for n in range(3, 8)}
    refused(
        lambda: fill(Network(), NAMES, state, "file"),
        "5 tensors have the wrong shape: l03 is (3,), expected (2,) for layers.3, l04",
        "l05 is (5,), expected (2,) for layers.5, and 2 more",
    )
    made = {
        **NAMES,
        "layers.0": Converted(("l00",), lambda w: w.unflatten(0, (7, 7))),
    }  # which fails on what has the right shape
    refused(lambda: fill(Network(), made, STATE, "file"), "1 tensors have the wrong shape: l00 is (2,)")


def test_a_tensor_that_sizes_are_read_from():
    state = {"a": torch.zeros(2, 3), "text": "x", "empty": torch.zeros(0, 3)}
    assert tensor(state, "a", 2, "file") is state["a"]
    refused(
        lambda: tensor(state, "b", 2, "file"),
        "file: b is missing, but the network's sizes are read from it as a tensor of 2 dimensions",
    )
    refused(lambda: tensor(state, "a", 1, "file"), "file: a is a tensor (2, 3) of float32")
    refused(lambda: tensor(state, "text", 1, "file"), "file: text is a str")
    refused(lambda: tensor(state, "empty", 2, "file"), "file: empty is a tensor (0, 3)")


def test_prefixes_are_taken_off_where_they_are():
    assert stripped({"module.a": 1, "b": 2, 3: 4}, "module.") == {"a": 1, "b": 2}
    assert stripped({"module.a": 1, "a": 2}, "module.") == {"module.a": 1, "a": 2}  # so that one is unexpected
    assert stripped([1], "module.") == stripped(None, "module.") == {}


def test_names_of_a_file_do_not_fill_the_screen():
    assert listed(["a\nb"]) == r"'a\nb'"
    assert len(listed(["a" * 10**6])) < 300
    assert listed([str(n) for n in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"


def test_channels_come_back_from_width_and_multiplier():
    """Importers divide channels by the width, and networks multiply.

    The rounded product is what the file had, for every multiplier.
    """
    channels = torch.arange(32, 2049, 32, dtype=torch.float64)
    for width in range(32, 1025, 32):
        assert torch.equal((width * (channels / width)).round(), channels)
        assert all(round(width * (c / width)) == c for c in range(32, 2049, 32))


SHARED = b"K\x01" + b"2\x86" * 200
"""A pickled tuple of twice the same tuple of twice the same and so on: its hash and its text have 2^200 parts."""
DEEP = b"K\x01" + b"\x85" * 50_000
MEMO = b"\x80\x02]q\x00(" + b"K\x01" * 5000 + b"e"
"""A pickled list of 5000 numbers, under the number 0."""


@pytest.mark.parametrize(
    "key", [SHARED, DEEP, SHARED + b"\x85", b"cpackage\nName\n)\x81", b"c__builtin__\nset\n]" + SHARED + b"a\x85R"]
)
@pytest.mark.parametrize(
    "mapping", [b"}%sK\x01s.", b"}(%sK\x01u.", b"(%sK\x01d.", b"ccollections\nOrderedDict\n)R%sK\x01s."]
)
def test_keys_that_take_without_end_are_refused(tmp_path, key, mapping):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02" + mapping.replace(b"%s", key))
    refused(lambda: files.read(path), "weights.pt")


def test_keys_of_plain_values_are_read(tmp_path):
    path = tmp_path / "weights.pt"
    plain = {"a": 1, 2: 2, 0.5: 3, True: 4, b"\xff": 5, None: 6, ("a", 1): 7, 2**64: 8}
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({**plain, OrderedDict: 9} | {"state": OrderedDict(plain)}, protocol=protocol))
        assert files.read(path) == {**plain, "collections.OrderedDict": 9, "state": plain}
    path.write_bytes(pickle.dumps({2**200: 1}))
    refused(lambda: files.read(path), "a int as a key")


@pytest.mark.parametrize(
    "content",
    [
        b"ctorch\ndevice\n%s\x85R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00a%s\x86R.",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x0a\x00\x00\x00class_name%sX\x05\x00\x00\x00stateNu\x85R.",
        b"cnumpy\ndtype\n%s\x85R.",
        b"\x8a\x0a" + files.MAGIC.to_bytes(10, "little") + b".\x80\x02%s.\x80\x02N.",
        b"c__builtin__\nlist\n]%s\x86R.",
        b"c__builtin__\nset\n]]\x86R.",
    ],
)
def test_values_are_not_written_out(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02" + content.replace(b"%s", SHARED))
    refused(lambda: files.read(path), "weights.pt")


def test_shared_values_are_read_and_named_in_short(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02cpackage\nName\n)\x81}X\x0a\x00\x00\x00sigma_data" + SHARED + b"sb.")
    record = files.read(path)
    assert repr(record) == "Record(name='Name', module='package')"
    for from_file, value in ((record.state, "a tuple"), ({"sigma_data": 10**5000}, "a int")):
        refused(
            lambda t=from_file: Settings("file", {}, t).numbers("", sigma_data=0.5),
            f"sigma_data={value} is not a positive number",
        )
        refused(
            lambda t=from_file: Settings("file", {"sigma_data": 0.5}, t),
            f"sigma_data=0.5, but the file specifies {value}",
        )
    refused(
        lambda: text.mdlm(peer_state("mdlm_dit"), "file", config={"parameterization": record.state["sigma_data"]}),
        "a tuple",
    )


@pytest.mark.parametrize(
    "call",
    [
        b"c__builtin__\nlist\nh\x00\x85R",
        b"ccopy_reg\n_reconstructor\n(cpackage\nName\nc__builtin__\nlist\nh\x00tR",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nlist\nh\x00tR",
    ],
)
def test_copies_without_end_are_refused(tmp_path, call):
    path = tmp_path / "weights.pt"
    path.write_bytes(MEMO + b"(" + call * 100 + b"t.")
    assert len(files.read(path)) == 100
    path.write_bytes(MEMO + b"(" + call * 2001 + b"t.")
    refused(lambda: files.read(path), "weights.pt", "copy more than 10,000,000 items")


def test_modules_that_are_shared_without_end_are_refused():
    record = Record("Linear", "nn", {"_modules": {}})
    for _ in range(60):
        record = Record("Block", "nn", {"_modules": {"a": record, "b": record}})
    refused(lambda: files.state_dict(record), "more than 100,000 modules")
