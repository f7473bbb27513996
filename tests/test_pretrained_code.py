"""Code in checkpoint files is refused by name, and never run."""

import builtins
import collections
import contextlib
import copyreg
import io
import os
import pickle
import pickletools
import random
import sys

import foreign
import pytest
import torch

from unnoise.experiments.pretrained.files import Record, read
from unnoise.experiments.pretrained.pickles import STEPS, Pickle


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


TRAP = b"ctrap\nrun\n"
"""Names a function of a module that must not be imported."""


@pytest.mark.parametrize(
    "content",
    [
        TRAP + b"X\x01\x00\x00\x00x\x85R.",  # REDUCE
        TRAP + b"X\x01\x00\x00\x00x\x85\x81.",  # NEWOBJ
        TRAP + b"X\x01\x00\x00\x00x\x85}\x92.",  # NEWOBJ_EX
        b"(X\x01\x00\x00\x00xitrap\nrun\n.",  # INST
        b"(" + TRAP + b"X\x01\x00\x00\x00xo.",  # OBJ
        TRAP + b")R]b.",  # BUILD
        TRAP + b")R(K\x01K\x02e.",  # APPENDS
        TRAP + b")R(K\x01K\x02\x90.",  # ADDITEMS
        TRAP + b")RK\x01K\x02s.",  # SETITEM
        TRAP + b")RN}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xs\x86b.",  # BUILD of slots
        b"ccopy_reg\n__newobj__\n" + TRAP + b"\x85R.",
        b"ccopy_reg\n__newobj_ex__\n" + TRAP + b")}\x87R.",
        b"ccopy_reg\n_reconstructor\n" + TRAP + b"c__builtin__\nobject\nN\x87R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + TRAP + b"ctorch\nTensor\n)}tR.",
        TRAP
        + b")R}"
        + b"".join(b"X" + bytes([len(n), 0, 0, 0]) + n + b"K\x01s" for n in (b"__class__", b"__dict__"))
        + b"b.",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x0a\x00\x00\x00class_nameX\x03\x00\x00\x00run"
        b"X\x05\x00\x00\x00stateNX\x0a\x00\x00\x00module_srcX\x08\x00\x00\x001 / 0 ()u\x85R.",
    ],
)
def test_each_way_to_call_makes_a_record(written, tmp_path, monkeypatch, content):
    marker = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(f"open({str(marker)!r}, 'w')\ndef run(*x): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = read(written(b"\x80\x02" + content))
    assert type(found) is Record
    assert found.name == "run"
    assert type(found.state) is dict
    assert "trap" not in sys.modules
    assert not marker.exists()


def test_a_default_of_a_dictionary_is_not_called(written):
    found = read(written(b"\x80\x02ccollections\ndefaultdict\n" + TRAP + b"\x85R."))
    assert type(found) is dict
    with pytest.raises(KeyError):
        found["missing"]


@pytest.mark.parametrize("code", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_functions_in_the_cache_of_extensions_are_not_found(refusal, monkeypatch, code):
    """`pickle.Unpickler` takes them without asking `find_class`."""
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)
    assert pickle.loads(b"\x80\x02" + code + b".") is os.system  # noqa: S301
    refusal(b"\x80\x02" + code + b".", "outside of it")


@pytest.mark.parametrize(
    "value", [b"]", b"}", b")", b"K\x01", b"N", b"X\x01\x00\x00\x00x", b"C\x01x", b"\x8f", TRAP + b")R"]
)
def test_values_are_not_called(refusal, value):
    for call in (b")R.", b")\x81.", b")}\x92."):
        refusal(b"\x80\x05" + value + call, "calls a computed function")
    refusal(b"\x80\x05(" + value + b"K\x01o.", "calls a computed function")


@pytest.mark.parametrize("target", [TRAP, b")", b"K\x01", b"N", b"X\x01\x00\x00\x00x", b"C\x01x"])
@pytest.mark.parametrize("change", [b"}b", b"K\x01a", b"(K\x01e", b"(K\x01\x90", b"K\x01K\x02s", b"(K\x01K\x02u"])
def test_only_objects_are_changed(refusal, target, change):
    refusal(b"\x80\x05" + target + change + b".", "damaged")


def test_persistent_names_make_nothing(written, refusal):
    with_source = b"\x80\x02(X\x06\x00\x00\x00module" + TRAP + b"X\x01\x00\x00\x00fX\x05\x00\x00\x001 / 0tQ."
    head = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b".\x80\x02M\xe9\x03."
    system = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
    found = read(written(head + system + with_source + b"\x80\x02]."))
    assert (type(found), found.module, found.name, found.state) == (Record, "trap", "run", {})
    refusal(foreign.zip_bytes({"a/data.pkl": with_source}), "damaged")
    refusal(foreign.zip_bytes({"a/data.pkl": with_source.replace(b"tQ", b"K\x01tQ")}), "outside of it")
    refusal(with_source, "outside of it")
    assert "trap" not in sys.modules


def test_every_instruction_is_known():
    """The others have an argument, which they push as it is: a string, bytes or number."""
    others = {op.name: op.arg for op in pickletools.opcodes if op.name not in STEPS}
    assert len(STEPS) + len(others) == len(pickletools.opcodes) == 68
    assert all(arg is not None for arg in others.values())
    assert {name for name in others if not name.startswith(("BIN", "SHORT_BIN", "INT", "LONG"))} == {
        "BYTEARRAY8",
        "FLOAT",
        "STRING",
        "UNICODE",
    }


HARMLESS = {dict, list, tuple, str, bytes, int, float, bool, complex, type(None), Record, torch.Tensor}


def test_random_programs_make_only_data(tmp_path, monkeypatch):
    """Programs of all instructions, with names of functions of every kind, import and call nothing."""
    watched, events = False, []

    def hook(event, _):
        if watched and event.split(".")[0] in (
            "import",
            "exec",
            "compile",
            "os",
            "subprocess",
            "pickle",
            "socket",
            "open",
        ):
            events.append(event)

    sys.addaudithook(hook)  # which stays
    marker, chosen = tmp_path / "ran", random.Random(0)
    (tmp_path / "trap.py").write_text(f"open({str(marker)!r}, 'w')\ndef run(*x): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = [
        TRAP,
        TRAP,
        *(
            b"c%s\n%s\n" % pair
            for pair in (
                (b"copy_reg", b"__newobj__"),
                (b"copy_reg", b"_reconstructor"),
                (b"copy_reg", b"__newobj_ex__"),
                (b"collections", b"OrderedDict"),
                (b"__builtin__", b"set"),
                (b"__builtin__", b"list"),
                (b"torch._tensor", b"_rebuild_from_type_v2"),
                (b"torch._utils", b"_rebuild_tensor_v2"),
                (b"numpy", b"dtype"),
                (b"torch_utils.persistence", b"_reconstruct_persistent_obj"),
                (b"_codecs", b"encode"),
                (b"torch", b"device"),
                (b"numpy.core.multiarray", b"_reconstruct"),
                (b"__builtin__", b"bytearray"),
                (b"unnoise.x", b"Pickle"),
                (b"torch.storage", b"_load_from_bytes"),
                (b"__builtin__", b"complex"),
            )
        ),
    ]
    plain = [b"]", b"}", b")", b"N", b"\x88", b"K\x01", b"K\x02", b"X\x01\x00\x00\x00x", b"C\x01x", b"\x8f", b"(", b"("]
    moves = [b"0", b"2", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"\x91", b"\x94", b"h\x00", b"h\x01", b"q\x01"]
    steps = [b"R", b"R", b"\x81", b"\x92", b"o", b"b", b"a", b"e", b"\x90", b"s", b"u", b"itrap\nrun\n"]
    kinds, made = [names, plain, plain, moves, steps, steps], 0

    def types(value, seen):
        if id(value) not in seen:
            seen[id(value)] = value
            yield type(value)
            inner = value.state if isinstance(value, Record) else value
            for part in (
                [*inner, *inner.values()]
                if isinstance(inner, dict)
                else inner
                if isinstance(inner, list | tuple)
                else ()
            ):
                yield from types(part, seen)

    from unnoise.experiments.pretrained.files import VALUES

    for _ in range(20_000):
        program = b")}" + b"".join(chosen.choice(chosen.choice(kinds)) for _ in range(chosen.randint(1, 16))) + b"."
        watched, found = True, None
        with contextlib.suppress(Exception):
            found = Pickle(io.BytesIO(program)).value(None, VALUES)
            made += 1
        watched = False
        assert {*types(found, {})} <= HARMLESS, program
    assert made > 500
    assert not events
    assert "trap" not in sys.modules
    assert not marker.exists()
