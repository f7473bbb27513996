"""Code in checkpoint files is refused by name, and never run."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import sys

import foreign
import pytest
import torch

from unnoise.experiments.pretrained.files import Record, read


@pytest.fixture
def written(tmp_path):
    return foreign.writer(tmp_path)


@pytest.fixture
def refusal(tmp_path):
    return foreign.refuser(tmp_path)


@foreign.in_every_container
@pytest.mark.parametrize("name", foreign.dangerous(""))
def test_code_is_refused_by_name(refusal, tmp_path, container, name):
    marker = tmp_path / "ran"
    refusal(
        container({"x": torch.ones(2), "y": foreign.dangerous(marker)[name]}),
        f"tries to run code ({name})",
        "nothing in it was run",
    )
    assert not marker.exists()


@pytest.mark.parametrize("container", [foreign.CONTAINERS["plain"], foreign.CONTAINERS["protocol 2"]])
def test_the_dangerous_files_are_dangerous(tmp_path, container):
    marker = tmp_path / "ran"
    pickle.loads(container({"y": foreign.dangerous(marker)["posix.system"]}))  # noqa: S301
    assert marker.exists()


def test_code_by_nested_names(refusal, tmp_path):
    marker = tmp_path / "ran"
    content = foreign.called("torch.serialization", "os.system", f"touch '{marker}'")
    refusal(content, "torch.serialization.os.system")
    refusal(
        foreign.called("collections", "OrderedDict.__init__.__globals__", ""),
        "collections.OrderedDict.__init__.__globals__",
    )
    refusal(foreign.called("__builtin__", "eval", "1"), "builtins.eval")
    assert not marker.exists()
    pickle.loads(content)  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
@foreign.in_every_container
def test_code_in_the_bytes_of_a_storage(refusal, tmp_path, container, legacy):
    marker = tmp_path / "ran"
    inner = foreign.torch_bytes([foreign.system(marker)], legacy=legacy)
    content = container({"x": foreign.Calls(torch.storage._load_from_bytes, inner)})
    refusal(content, "posix.system")
    refusal(
        container({"x": foreign.Calls(torch.storage._load_from_bytes, pickle.dumps(foreign.system(marker)))}),
        "posix.system",
    )
    refusal(container({"x": foreign.Calls(torch.storage._load_from_bytes, foreign.torch_bytes({"x": 1}))}), "damaged")
    assert not marker.exists()


def test_unknown_names_are_neither_imported_nor_called(written, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(f"open({str(marker)!r}, 'w')\ndef run(x): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = read(written(foreign.called("trap", "run", "x")))
    assert (found.module, found.name, found.state) == ("trap", "run", {})
    assert "trap" not in sys.modules
    assert not marker.exists()


def test_the_state_of_an_object_sets_nothing_of_ours(written):
    """BUILD calls `__setstate__`, or sets attributes, of whatever lies on the stack.

    Of a tensor and of a function that is known, too.
    """
    content = pickle.dumps(torch.ones(2), protocol=2)[:-1] + b"}X\x05\x00\x00\x00shapeK\x07sb."
    assert read(written(content)).tolist() == [1, 1]
    assert isinstance(read(written(b"\x80\x02cpackage\nName\n)\x81}X\x0c\x00\x00\x00__setstate__K\x01sb.")), Record)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.", "damaged"),
        (b"\x80\x02cpackage\nName\n)R)R.", "calls a computed function"),
        (b"\x80\x02cpackage\nName\n]R.", "calls a computed function"),
        (b"\x80\x02K\x01Q.", "outside of it"),
        (b"\x80\x02\x82\x07.", "outside of it"),
        (b"\x80\x05\x97.", "outside of it"),
        (b"\x80\x02]]s.", "damaged"),
        (b"\x80\x02j\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7fh\x00.", "damaged"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02" + b"(" * 9 + b"d" * 9 + b".", "damaged"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "damaged"),
    ],
)
def test_instructions_that_no_weights_may_use(refusal, content, word):
    refusal(content, word)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02]K\x012\x86aK\x020.", [(1, 1)]),  # DUP, POP
        (b"\x80\x02K\x01(K\x02K\x031.", 1),  # POP_MARK
        (b"\x80\x02K\x01(0.", 1),  # POP takes a mark, too
        (b"\x80\x02(ccollections\nOrderedDict\n]]X\x01\x00\x00\x00aaK\x01aao.", {"a": 1}),  # OBJ
        (b"\x80\x02(]]X\x01\x00\x00\x00aaK\x01aaicollections\nOrderedDict\n.", {"a": 1}),  # INST
        (b"\x80\x02(I1\nI01\nL3L\nF0.5\nS'a'\nVb\nlp0\n(g0\nt.", ([1, True, 3, 0.5, "a", "b"],)),  # in text
    ],
)
def test_rare_instructions(written, content, expected):
    assert read(written(content)) == expected == pickle.loads(content)  # noqa: S301


def test_a_far_place_in_the_memo_takes_no_memory(written):
    assert read(written(b"\x80\x02K\x01r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.")) == 1


def test_extensions_and_persistent_names_are_refused(refusal):
    copyreg.add_extension("collections", "OrderedDict", 240)
    try:
        content = pickle.dumps(collections.OrderedDict, protocol=2)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 240)
    refusal(content, "outside of it")
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=2)
    pickler.persistent_id = lambda x: ("storage", 1) if x == "a" else None
    pickler.dump(["a"])
    refusal(out.getvalue(), "outside of it")


def test_no_code_of_a_file_is_reached(written, monkeypatch):
    """Reading a file of each kind calls none of the functions by which code is run."""
    contents = foreign.valid()

    def refuse(*_):
        raise AssertionError("called")

    for where, name in (
        (builtins, "eval"),
        (builtins, "exec"),
        (os, "system"),
        (pickle, "loads"),
        (pickle, "load"),
        (torch, "load"),
    ):
        monkeypatch.setattr(where, name, refuse)
    for content in contents.values():
        assert read(written(content))
