"""Batches of streams: their order, their resumption, workers, ranks, and what cannot be streamed."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.shared.data.augmentation import Augmentation
from unnoise.shared.data.feeding import feed
from unnoise.shared.data.image_stream import ImageStream, image_stream
from unnoise.shared.data.streaming import StreamedBatches
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization

SIZES = (10, 11, 12, 13)
datasets.disable_progress_bars()


def encoded(number: int, size: int = 6, gray: bool = False) -> bytes:
    """A PNG whose first pixel is the number of the image."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size) if gray else (size, size, 3), dtype=np.uint8)
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four Parquet files in the layout of CIFAR-10 on the Hub, with random images."""
    root, number = tmp_path_factory.mktemp("stream"), 0
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for shard, size in enumerate(SIZES):
        rows = [{"img": {"bytes": encoded(n), "path": None}, "label": n % 3} for n in range(number, number + size)]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(root / f"train-{shard:05d}-of-00004.parquet"), batch_size=4)
        number += size
    return root


def batches_of(stream: ImageStream, seed: int = 3, **changes: Any) -> StreamedBatches:
    settings: dict[str, Any] = {"form": Quantization.dequantized, "augment": Augmentation(0.5), "block": 9} | changes
    settings = {"batch": 4, "seed": seed, "names": stream.names} | settings
    return StreamedBatches(
        stream.stream, stream.decode, quantization=stream.quantization, shape=stream.shape, **settings
    )


def plain(stream: ImageStream, **changes: Any) -> StreamedBatches:
    return batches_of(stream, form=Quantization.quantized, augment=None, **changes)


def numbers(batch: dict[str, torch.Tensor]) -> list[int]:
    return batch["x0"][:, 0, 0, 0].tolist()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_epoch_has_each_example_once_in_blocks_of_shards_in_another_order(folder: Path) -> None:
    batches = plain(image_stream(str(folder), classes=3))
    assert batches.block == 8
    stream, epochs = iter(batches), []
    for _ in range(3):  # 46 examples: five blocks of two batches, and one batch of the last six
        found = [next(stream) for _ in range(11)]
        for batch in found:
            assert batch["label"].tolist() == [n % 3 for n in numbers(batch)]
        epochs.append([n for batch in found for n in numbers(batch)])
        assert len(set(epochs[-1])) == 44
    starts = np.cumsum([0, *SIZES])
    orders = []
    for epoch in epochs:
        blocks = [set(epoch[n : n + 8]) for n in range(0, 44, 8)]
        shards = [int(np.searchsorted(starts, sorted(block)[0], side="right")) for block in blocks]
        orders.append(shards)
        assert all(len({int(np.searchsorted(starts, n, side="right")) for n in block}) <= 3 for block in blocks)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    assert epochs[0] != epochs[1]
    again = iter(plain(image_stream(str(folder), classes=3)))
    assert [n for _ in range(11) for n in numbers(next(again))] == epochs[0]
    other = iter(plain(image_stream(str(folder), classes=3), seed=4))
    assert [n for _ in range(11) for n in numbers(next(other))] != epochs[0]


def test_within_a_block_the_order_is_random(folder: Path) -> None:
    stream = iter(plain(image_stream(str(folder)), block=16))
    block = [n for _ in range(4) for n in numbers(next(stream))]
    assert block != sorted(block)


def test_a_block_is_in_another_order_in_each_epoch(folder: Path) -> None:
    one = image_stream(str(folder / "train-00000-of-00004.parquet"))
    stream = iter(plain(one))
    first, second = ([n for _ in range(2) for n in numbers(next(stream))] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(8))  # a single shard: the first block of each epoch
    assert first != second


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 10, 11, 12, 17, 23])
def test_a_resumed_stream_continues_bit_for_bit(folder: Path, taken: int) -> None:
    whole = list(islice(batches_of(image_stream(str(folder), classes=3)), taken + 4))
    first = batches_of(image_stream(str(folder), classes=3))
    for _ in islice(first, taken):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    second = batches_of(image_stream(str(folder), classes=3))
    second.load_state_dict(state)
    assert second.position == taken
    for expected, found in zip(whole[taken:], second, strict=False):
        assert same(expected, found)


def test_workers_give_the_same_batches_and_none_is_lost_in_a_checkpoint(folder: Path) -> None:
    stream = image_stream(str(folder), classes=3)
    expected = list(islice(batches_of(stream), 9))
    batches = batches_of(stream)
    read = feed(batches, range(4), workers=2)
    for n in range(6):  # the workers are several batches ahead
        assert same(next(read), expected[n])
    state = batches.state_dict()
    read.close()
    again = batches_of(stream)
    again.load_state_dict(state)
    read = feed(again, range(4))
    for n in range(6, 9):
        assert same(next(read), expected[n])
    read.close()


def test_processes_have_the_rows_of_the_whole_batch(folder: Path) -> None:
    stream = image_stream(str(folder), classes=3)
    whole = list(islice(batches_of(stream), 4))
    parts = [list(islice(feed(batches_of(stream), rows), 4)) for rows in (range(1), range(1, 4))]
    for n, batch in enumerate(whole):
        assert same({name: torch.cat([p[n][name] for p in parts]) for name in batch}, batch)


def test_a_process_decodes_its_own_rows_alone(folder: Path) -> None:
    stream, decoded = image_stream(str(folder)), []

    def decode(rows: Any) -> Any:
        decoded.append(len(rows))
        return stream.decode(rows)

    batches = StreamedBatches(stream.stream, decode, 4, stream.quantization, stream.shape)
    list(islice(feed(batches, range(1, 3)), 5))
    assert decoded == [2] * 5


def test_another_stream_or_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    stream = image_stream(str(folder), classes=3)
    state = batches_of(stream).state_dict()
    for changes, match in (
        ({"seed": 5}, "seed: was 3, now 5"),
        ({"batch": 3}, "batch: was 4, now 3"),
        ({"block": 20}, "shuffle_block: was 8, now 20"),
    ):
        with pytest.raises(UsageError, match=match):
            batches_of(stream, **changes).load_state_dict(state)
    (tmp_path / "train.parquet").write_bytes((folder / "train-00000-of-00004.parquet").read_bytes())
    one = image_stream(str(tmp_path), classes=3)
    with pytest.raises(UsageError, match="shards: was 4, now 1"):
        batches_of(one).load_state_dict(state)
    assert "one shard has one order" in one.summary
    with pytest.raises(UsageError, match="were not streamed"):
        batches_of(one).load_state_dict({"position": 3})
    with pytest.raises(UsageError, match="batch=20: the stream has 10 examples; give a number from 1 to 10"):
        next(iter(batches_of(one, batch=20, block=20)))
    with pytest.raises(UsageError, match="batch=4, shuffle_block=2: give"):
        batches_of(one, block=2)


def test_a_stream_knows_its_shape_names_and_shards(folder: Path) -> None:
    stream = image_stream(str(folder), classes=3)
    assert stream.summary == "a stream of images of 3x6x6 in 4 shards"
    assert (stream.shape, stream.names, stream.quantization) == ((3, 6, 6), ("a", "b", "c"), Quantization())
    images = stream.first(13)
    assert images.k[:][:, 0, 0, 0].tolist() == list(range(13))
    assert images.label is not None
    assert images.label.tolist() == [n % 3 for n in range(13)]
    assert "the first 13 images of the stream" in images.notes
    assert stream.first(99).notes == ()
    assert image_stream(str(folder), size=(4, 4)).shape == (3, 4, 4)


def test_tar_files_are_streamed(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for n in range(5 * shard, 5 * shard + 5):
                for name, content in ((f"{n}.png", encoded(n, gray=True)), (f"{n}.cls", str(n % 2).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    stream = image_stream(str(tmp_path), classes=2)
    assert stream.shape == (1, 6, 6)
    assert stream.stream.num_shards == 2
    whole = list(islice(plain(stream, batch=2, block=4), 9))
    for batch in whole:
        assert batch["label"].tolist() == [n % 2 for n in numbers(batch)]
    first = plain(stream, batch=2, block=4)
    list(islice(first, 4))
    second = plain(image_stream(str(tmp_path), classes=2), batch=2, block=4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [numbers(b) for b in islice(second, 5)] == [numbers(b) for b in whole[4:]]


def test_images_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    def stream(images: list[bytes], label: list[int], **settings: Any) -> ImageStream:
        rows = {"image": [{"bytes": b, "path": None} for b in images], "label": label}
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / "train.parquet"))
        return image_stream(str(tmp_path), **settings)

    def refused(found: ImageStream, match: str) -> None:
        with pytest.raises(UsageError, match=match) as error:
            list(islice(plain(found, batch=1, block=1), 3))
        assert "\n" not in str(error.value)

    refused(stream([encoded(1), encoded(2, 7), encoded(3)], [0, 1, 2]), "has the size 7x7, and the first one 6x6")
    refused(stream([encoded(1), encoded(2)], [0, 4], classes=3), "classes=3: .* has the label 4")
    with pytest.raises(UsageError, match="cannot be read"):
        stream([b"no image", encoded(1)], [0, 1])
    mixed = stream([encoded(1), encoded(2, gray=True)], [0, 1])
    assert mixed.first(2).k.shape == (2, 3, 6, 6)
    late = stream([*[encoded(n, gray=True) for n in range(64)], encoded(64)], [0] * 65)
    with pytest.raises(UsageError, match="is in color, and its first 64 are gray"):
        late.first(65)


def test_what_is_no_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="streaming: digits is not a stream: give .parquet"):
        image_stream("digits")
    (tmp_path / "a.png").write_bytes(encoded(1))
    with pytest.raises(UsageError, match="is not a stream"):
        image_stream(str(tmp_path))
