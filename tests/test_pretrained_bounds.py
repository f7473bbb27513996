"""What a file may take of memory and time is bounded by its size."""

import io
import tracemalloc
import zipfile
import zlib

import foreign
import pytest
import torch
from pretrained_helpers import refused

from unnoise.experiments.pretrained import files, pickles
from unnoise.shared.errors import UsageError


def peak(tmp_path, content):
    """The most memory in bytes that is taken while a file is read or refused, and the refusal."""
    path, message = tmp_path / "weights.pt", ""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        files.read(path)
    except UsageError as error:
        message = str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most, message


FAR = {  # instructions with the largest sizes and numbers that they can announce
    "BINSTRING": b"T\xff\xff\xff\x7f",
    "BINUNICODE": b"X\xff\xff\xff\xff",
    "BINBYTES": b"B\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "BINBYTES8": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "BYTEARRAY8": b"\x96" + b"\xff" * 7 + b"\x7f",
    "a large BYTEARRAY8": b"\x96" + (40 * 10**9).to_bytes(8, "little"),
    "FRAME": b"\x95" + b"\xff" * 7 + b"\x7fN",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "PUT": b"Np" + b"9" * 4000 + b"\n",
    "BINPUT": b"Nr\xff\xff\xff\xff",
    "LONG": b"L" + b"9" * 5000 + b"L\n",
    "GET": b"g" + b"9" * 5000 + b"\n",
}


@pytest.mark.parametrize("name", FAR)
def test_announced_sizes_take_no_memory(tmp_path, name):
    most, message = peak(tmp_path, b"\x80\x05" + FAR[name] + b".")
    assert ("weights.pt is truncated or damaged" in message) == (name not in ("FRAME", "PUT", "BINPUT"))
    assert most < 200_000


DEEP = 50_000


@pytest.mark.parametrize(
    ("start", "step", "end"),
    [
        (b"", b"]", b"a" * (DEEP - 1)),
        (b"]", b"\x85", b""),
        (b"", b"}K\x01", b"N" + b"s" * DEEP),
        (b"", b"(", b"l" * (DEEP - 1)),
        (b"", b"(", b"\x91" * (DEEP - 1)),
        (b"", b"ctorch\ndevice\n", b")R" + b"\x85R" * (DEEP - 1)),
        (b"", b"ctorch\ndevice\n", b")R" + b"\x85\x81" * (DEEP - 1)),
        (b"", b"ca\nb\n)\x81", b"N" + b"b" * DEEP),
        (b"", b"ca\nb\n)\x81", b"N" + b"a" * DEEP),
        (b"", b"c__builtin__\ndict\n)\x81K\x01", b"N" + b"s" * DEEP),
    ],
)
def test_deep_contents_are_refused(tmp_path, start, step, end):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x04" + start + step * DEEP + end + b".")
    refused(lambda: files.read(path), "truncated or damaged")


def test_deep_arguments_of_what_is_not_called_are_left_out(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02" + b"ca\nb\n" * DEEP + b")R" + b"\x85R" * (DEEP - 1) + b".")
    assert files.read(path).state == {}


def test_long_numbers_are_read_in_short_time(tmp_path):
    content = b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6
    path = tmp_path / "weights.pt"
    path.write_bytes(content + b".")
    assert files.read(path).bit_length() == 8 * 10**6 - 1
    refused(lambda: files.state_dict(files.read(path)), "a int is not a network")
    path.write_bytes(content.replace(b"\x80\x02", b"\x80\x02}") + b"Ns.")
    refused(lambda: files.read(path), "a int as a key")


@pytest.mark.parametrize("kind", ["}%ss.", "}(%su.", "(%sd."])
def test_numbers_with_the_same_hash_are_few(tmp_path, kind):
    path = tmp_path / "weights.pt"
    items = (b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(2, 20_000))
    body = b"s".join(items) if kind.endswith("%ss.") else b"".join(items)
    path.write_bytes(b"\x80\x02" + kind.encode().replace(b"%s", body))
    refused(lambda: files.read(path), "a int as a key")


def laughs(head, first, again):
    """A pickle of many bytes in a call, and of 400 more calls with the same."""
    return b"\x80\x05(" + head + first + again * 400 + b"t."


BYTES = b"\x8e" + (20_000).to_bytes(8, "little") + bytes(20_000) + b"\x94"
FLOATS = b"cnumpy\ndtype\nU\x02f4\x85R\x94"
SHAPE = b"J" + (5_000).to_bytes(4, "little") + b"\x85U\x01CtR"
STORED = foreign.torch_bytes(torch.zeros(5_000).untyped_storage(), legacy=True)


@pytest.mark.parametrize(
    "content",
    [
        laughs(
            b"",
            b"ctorch.storage\n_load_from_bytes\n\x8e" + len(STORED).to_bytes(8, "little") + STORED + b"\x94\x85R",
            b"ctorch.storage\n_load_from_bytes\nh\x00\x85R",
        ),
        laughs(
            b"",
            b"cnumpy.core.numeric\n_frombuffer\n(" + BYTES + FLOATS + SHAPE,
            b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01" + SHAPE,
        ),
        laughs(
            BYTES + b"0" + FLOATS + b"0",
            b"",
            b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J" + SHAPE[1:5] + b"\x85h\x01\x89h\x00tb",
        ),
        laughs(
            b"X" + (20_000).to_bytes(4, "little") + b"a" * 20_000 + b"\x940",
            b"",
            b"c_codecs\nencode\nh\x00U\x06latin1\x86R",
        ),
        laughs(b"(" + b"K\x01" * 20_000 + b"l\x940", b"", b"c__builtin__\nbytearray\nh\x00\x85R"),
        laughs(b"(U\x02f4" + b"K\x01" * 20_000 + b"t\x940", b"", b"cnumpy\ndtype\nh\x00R"),
        laughs(b"(ca\nb\n" + b"K\x01" * 20_000 + b"t\x940", b"", b"ccopy_reg\n__newobj__\nh\x00R"),
    ],
    ids=["storage", "buffer", "array", "text", "bytearray", "arguments", "newobj"],
)
def test_the_same_bytes_are_not_copied_without_end(tmp_path, monkeypatch, content):
    monkeypatch.setattr(pickles, "COPIED", 100_000)
    most, message = peak(tmp_path, content)
    assert "copy more than 100,000 items" in message
    assert most < 2_000_000


def test_files_in_the_bytes_of_a_storage_contain_no_others(tmp_path):
    content = b"x" * 200_000
    for _ in range(100):
        content = (
            b"\x80\x05ctorch.storage\n_load_from_bytes\n\x8e" + len(content).to_bytes(8, "little") + content + b"\x85R."
        )
    most, message = peak(tmp_path, content)
    assert "a storage is not a flat tensor" in message
    assert most < 2_000_000


def test_parts_of_a_zip_file_do_not_overlap(tmp_path):
    """Each part of this file contains the headers and data of all later ones."""
    block, parts = bytes(10_000), []
    for n in reversed(range(50)):
        part = zipfile.ZipInfo(f"archive/data/{n}")
        part.file_size = part.compress_size = len(block)
        part.CRC = zlib.crc32(block)
        parts.append(part)
        block = part.FileHeader() + block
    sizes = {part.filename: part.file_size for part in parts[::-1]}
    content = foreign.torch_bytes({name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()})
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", source.read("archive/data.pkl"))
        for part in parts:
            part.header_offset = archive.start_dir + len(block) - part.file_size - len(part.FileHeader())
        out.seek(archive.start_dir)
        out.write(block)
        archive.start_dir += len(block)
        archive.filelist.extend(parts)
    assert len(out.getvalue()) * 20 < sum(sizes.values())
    most, message = peak(tmp_path, out.getvalue())
    assert "overlap" in message
    assert most < sum(sizes.values()) / 4


def test_views_of_a_storage_share_it(tmp_path):
    """As in files of very old versions; copies of each would have no end."""
    content = foreign.torch_bytes({"x": torch.arange(4.0)}, legacy=True)
    assert content.count(b"K\x04Nt") == 1
    view = b"(X\x01\x00\x00\x00vK\x01K\x02t"
    path = tmp_path / "weights.pt"
    size = content.index(b"K\x00K\x04\x85") if b"K\x00K\x04\x85" in content else None
    assert size is not None
    for length, expected in ((2, [1, 2]), (3, None)):
        changed = content.replace(b"K\x04Nt", b"K\x04" + view + b"t")
        changed = changed.replace(b"K\x00K\x04\x85", b"K\x00K" + bytes([length]) + b"\x85")
        path.write_bytes(changed)
        if expected:
            x = files.read(path)["x"]
            assert x.tolist() == expected
            assert x.untyped_storage().nbytes() == 16
        else:
            refused(lambda: files.read(path), "reaches beyond its storage")


@pytest.mark.parametrize("size", [b"K\x01" * 40, b"\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6])
def test_shapes_are_short(tmp_path, size):
    content = foreign.torch_bytes({"x": torch.arange(4.0)}, legacy=True)
    start = content.index(b"K\x00K\x04\x85")
    path = tmp_path / "weights.pt"
    path.write_bytes(content[: start + 2] + b"(" + size + b"t" + content[start + 5 :])
    refused(lambda: files.read(path), "shape")


def test_an_expanded_tensor_is_not_a_shape_or_bytes(tmp_path):
    """It has 10^15 items, and memory for one."""
    wide, path = torch.zeros(1).expand(10**15), tmp_path / "weights.pt"
    function, (_, offset, size, stride, *rest) = torch.arange(4.0).__reduce_ex__(2)
    storage = torch.arange(4.0).__reduce_ex__(2)[1][0]
    for made in (
        foreign.Calls(bytearray, wide),
        foreign.Calls(function, storage, offset, wide, stride, *rest),
        foreign.Calls(function, storage, offset, size, wide, *rest),
        foreign.Calls(function, wide, offset, size, stride, *rest),
        [foreign.Calls(bytes, wide)],
    ):
        for legacy in (False, True):
            path.write_bytes(foreign.torch_bytes([made], legacy=legacy))
            refused(lambda: files.read(path), "weights.pt")


def test_keys_of_storages_are_short(tmp_path):
    """A number of many digits would have no text in the message."""
    content = foreign.torch_bytes({"x": torch.arange(4.0)}, legacy=True)
    start = content.rindex(b"]q\x00X")
    end = content.index(b"a.", start) + 2
    path = tmp_path / "weights.pt"
    path.write_bytes(content[:start] + b"]\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000 + b"a." + content[end:])
    refused(lambda: files.read(path), "neither a string nor a number")


def test_long_names_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02c" + b"a" * 500 + b"\n" + b"b" * 500 + b"\n.")
    assert files.read(path).module == "a" * 500
    path.write_bytes(b"\x80\x02c" + b"a" * 501 + b"\n" + b"b" * 500 + b"\n.")
    refused(lambda: files.read(path), "more than 1000 letters")


def test_deep_json_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    refused(lambda: files.json_object(path), "cannot be read as JSON")
