"""Files of other projects are read exactly."""

import collections
import io
import pickle
import random
import sys
import zipfile

import foreign
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from unnoise.experiments.pretrained.files import Record, read, state_dict
from unnoise.experiments.pretrained.pickles import Pickle
from unnoise.shared.errors import UsageError


@pytest.fixture
def written(tmp_path):
    return foreign.writer(tmp_path)


@pytest.fixture
def refusal(tmp_path):
    return foreign.refuser(tmp_path)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
DATA = st.recursive(
    LEAVES,
    lambda s: (
        st.lists(s)
        | st.dictionaries(st.text() | st.integers(), s)
        | st.builds(tuple, st.lists(s))
        | st.builds(lambda x: [x, x], s)
    ),
)


@given(DATA, st.integers(0, 5))
def test_plain_data_is_what_pickle_reads(data, protocol):
    from unnoise.experiments.pretrained.files import VALUES

    actual = Pickle(io.BytesIO(pickle.dumps(data, protocol=protocol))).value(None, VALUES)
    assert actual == data
    assert repr(actual) == repr(data)


def test_shared_and_cyclic_objects_stay_so(written):
    inner = {}
    outer = [inner, inner]
    inner["outer"] = outer
    found = read(written(pickle.dumps(outer)))
    assert found[0] is found[1]
    assert found[0]["outer"] is found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_sets_dictionaries_and_bytes(written, protocol):
    given = [
        {3},
        frozenset({4}),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, x=[1]),
        collections.Counter("aab"),
    ]
    given += [b"", b"\xff\x00", bytearray(b"\xfe"), torch.Size((2, 3)), torch.device("cuda", 1), 1j]
    expected = [
        (3,),
        (4,),
        {"b": 1, "a": 2},
        {"x": [1]},
        {"a": 2, "b": 1},
        b"",
        b"\xff\x00",
        b"\xfe",
        (2, 3),
        "cuda:1",
        1j,
    ]
    found = read(written(pickle.dumps(given, protocol=protocol)))
    assert found == expected
    assert [type(f) for f in found] == [type(e) for e in expected]


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_what_torch_reads(written, legacy):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    given = foreign.tensors()
    if legacy:  # in which torch itself cannot read these
        del given["torch.float8_e4m3fn"], given["torch.uint16"]
    content = {"tensors": given, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "name": "π"}
    path = written(foreign.torch_bytes(content, legacy=legacy))
    found, expected = read(path), torch.load(path, weights_only=True)
    foreign.assert_same(found, expected)
    same = found["tensors"]
    assert same["base"].data_ptr() == same["turned"].data_ptr() == same["row"].data_ptr() - 4 * 6
    assert same["tied"].data_ptr() == same["again"].data_ptr()


def test_storages_of_other_devices_come_to_the_cpu(written):
    content = foreign.torch_bytes({"x": torch.arange(3.0)}, legacy=True)
    moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != content
    assert read(written(moved))["x"].tolist() == [0, 1, 2]


def test_safetensors(written):
    expected = {"a.weight": torch.randn(2, 3), "b": torch.arange(3)}
    foreign.assert_same(dict(sorted(read(written(save(expected))).items())), expected)


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_networks(written, protocol, easy):
    torch.manual_seed(0)
    content, expected = foreign.edm_pickle(foreign.small_network, protocol=protocol, easy=easy)
    found = read(written(content))
    foreign.assert_same(state_dict(found["ema"]), dict(expected))
    assert "enc.32x32_conv.passing" not in expected
    assert found["ema"].name == "Network"
    assert found["ema"].state["_init_kwargs"] == {"img_resolution": 32}
    assert found["ema"].state["levels"] == (1, 2, 3)
    block = found["ema"].state["_modules"]["shared"]
    assert block is found["ema"].state["_modules"]["enc"].state["_modules"]["32x32_conv"]
    assert (block.state["activation"].module, block.state["activation"].name) == ("torch.nn.functional", "silu")
    assert (block.state["device"], block.state["size"]) == ("cpu:0", (1, 2))
    assert (block.state["_modules"]["conv"].module, block.state["_modules"]["conv"].name) == (
        "torch.nn.modules.conv",
        "Conv2d",
    )
    assert found["dataset_kwargs"] == {"path": "cifar10.zip", "resolution": 32, "xflip": False}
    assert found["loss_fn"].state == {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}
    assert found["augment_pipe"] is None
    with pytest.raises(UsageError, match="EDMLoss is not a network"):
        state_dict(found["loss_fn"])


def test_a_network_that_holds_itself_is_refused():
    record = Record("Net", "nets", {"_modules": {}})
    record.state["_modules"]["self"] = record
    with pytest.raises(UsageError, match="nested more than 100 deep"):
        state_dict(record)


def test_lightning_checkpoints(written):
    expected = {"backbone.weight": torch.randn(2, 3), "backbone.bias": torch.randn(2)}
    path = written(foreign.omegaconf_checkpoint(expected))
    with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
        torch.load(path, weights_only=True)
    found = read(path)
    assert "omegaconf" not in sys.modules
    foreign.assert_same(found["state_dict"], expected)
    foreign.assert_same(found["ema"]["shadow_params"], list(expected.values()))
    config = found["hyper_parameters"]["config"]
    assert (config.module, config.name) == ("omegaconf.dictconfig", "DictConfig")
    assert config.state["_content"]["length"].state["_val"] == 1024
    assert config.state["_content"]["length"].state["_parent"] is config


@foreign.in_every_container
@pytest.mark.parametrize("old", [False, True])
def test_numpy(written, container, old):
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.ones(0),
    ]
    numbers = [np.float64(0.5), np.int32(-3), np.bool_(True), np.float16(0.25)]
    content = container([arrays, numbers, np.array(["text", None], dtype=object)])
    if old and container is not foreign.CONTAINERS["plain"]:
        changed = content.replace(b"cnumpy._core.", b"cnumpy.core.")
        if container is not foreign.CONTAINERS["zip"]:
            content = changed
    found = read(written(content))
    for actual, expected in zip(found[0], arrays, strict=True):
        assert torch.equal(actual, torch.from_numpy(expected.astype(expected.dtype.newbyteorder("="))))
    assert found[1] == [0.5, -3, True, 0.25]
    assert [type(n) for n in found[1]] == [float, int, bool, float]
    assert isinstance(found[2], Record)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (3, 2)), (0, (2,), (2**62,))],
)
def test_tensors_stay_within_their_storage(refusal, legacy, offset, size, stride):
    function, (storage, _, _, _, *rest) = torch.arange(4.0).__reduce_ex__(2)
    made = foreign.Calls(function, storage, offset, size, stride, *rest)
    reason = "reaches beyond its storage" if min(offset, *stride) >= 0 else "does not consist of whole numbers"
    refusal(foreign.torch_bytes([made], legacy=legacy), "damaged", reason)


@pytest.mark.parametrize("change", [b"", b"1234"])
def test_storages_of_another_size_are_refused(refusal, change):
    content = foreign.torch_bytes({"x": torch.arange(4.0)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (storage,) = (name for name in members if name.endswith("data/0"))
    refusal(foreign.zip_bytes(members | {storage: members[storage][:12] + change * 2}), "instead of 4 times 4")


@pytest.mark.parametrize("kind", ["sparse", "quantized", "conjugate"])
def test_other_kinds_of_tensors_are_refused(refusal, kind):
    x = torch.eye(2)
    made = {"sparse": x.to_sparse(), "conjugate": torch.ones(2, dtype=torch.complex64).conj()}
    made["quantized"] = foreign.Calls(torch._utils._rebuild_qtensor, 1)
    refusal(foreign.torch_bytes([made[kind]]), "_rebuild", "which is not supported")


def test_what_is_no_file_of_weights(refusal, tmp_path):
    for path, word in ((tmp_path / "missing.pt", "there is no file"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=word):
            read(path)
    with pytest.raises(UsageError, match="there is no file"):
        read(str(tmp_path / "missing.pt"))
    refusal(b"", "is empty", "download it again")
    refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull")
    refusal(b"<!DOCTYPE html>", "<!DOCTYPE ht", "safetensors", "torch", "EDM", "diffusers")
    refusal(foreign.zip_bytes({"x.txt": b""}), "data.pkl")
    refusal(foreign.zip_bytes({"a/data.pkl": b"", "b/data.pkl": b""}), "data.pkl")
    refusal(foreign.zip_bytes({"a/data.pkl": b"", "a/constants.pkl": b""}), "TorchScript")
    refusal(foreign.zip_bytes({"a/data.pkl": b"", "a/code/net.py": b""}), "TorchScript")
    refusal(foreign.zip_bytes({"a/data.pkl": b"N."}, zipfile.ZIP_DEFLATED), "compressed")
    refusal(foreign.zip_bytes({"a/data.pkl": b"N.", "a/byteorder": b"big"}), "big-endian")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "plain", "lightning"])
def test_files_that_are_cut_short(written, refusal, kind):
    content = foreign.valid()[kind]
    assert read(written(content))
    chosen = random.Random(0)
    for size in {0, 1, 2, 8, 9, 30, len(content) - 1, *(chosen.randrange(len(content)) for _ in range(25))}:
        message = refusal(content[:size])
        assert size < 32 or f"{size:,} bytes" in message
        assert size < 32 or "download it again" in message


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "plain", "lightning"])
def test_files_with_flipped_bits(written, kind, tmp_path):
    content, chosen = foreign.valid()[kind], random.Random(0)
    members = {}
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next((name for name in members if name.endswith("data.pkl")), None)
    refused = []
    for n in range(150):
        inside = bool(members) and n % 2 == 1  # or the checksum finds them all
        changed = bytearray(members[pickled] if inside else content)
        for _ in range(chosen.randint(1, 3)):
            changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        try:
            found = read(written(foreign.zip_bytes(members | {pickled: bytes(changed)}) if inside else bytes(changed)))
            if isinstance(found, dict) and isinstance(found.get("ema"), Record):
                state_dict(found["ema"])
        except UsageError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.bin"]
