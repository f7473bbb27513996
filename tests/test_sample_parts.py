"""Samples drawn in parts: stopped and continued, written part by part, and equal to samples drawn at once."""

import json
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.continuous import DenoisingLoss, Learned, LinearBetas
from unnoise.experiments import sample_parts, sample_writing
from unnoise.experiments.cli import main
from unnoise.experiments.papers import ddpm, edm, mdlm
from unnoise.experiments.sample_files import read_samples
from unnoise.experiments.sample_parts import Parts, draw_parts, missing
from unnoise.experiments.sample_writing import Streamed, write_npz, write_samples
from unnoise.experiments.tensor_data import Tensors
from unnoise.experiments.text_data import Text
from unnoise.shared.data import Batches
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.measurement import Origin
from unnoise.shared.networks import UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

COUNT, SIZE = 11, 3
SETTINGS = {"count": COUNT, "seed": 0, "labels": ("1", "2")}
ABOUT = {"origin": {"sampler": "Ancestral()", "steps": 7}, "quantization": {"levels": 17, "low": -1.0, "high": 1.0}}


def levels_of(rows):
    """Quantization levels that depend on the number of the sample alone."""
    return torch.stack([torch.randint(17, (2, 4, 3), generator=torch.Generator().manual_seed(int(n))) for n in rows])


class Drawing:
    """Draws samples of given numbers, and stops before a chunk."""

    def __init__(self, of=levels_of, stop=None, error=KeyboardInterrupt):
        self.of, self.stop, self.error, self.chunks = of, stop, error, []

    def __call__(self, progress):
        return self.drawn

    def drawn(self, rows):
        if len(self.chunks) == self.stop:
            raise self.error
        self.chunks.append(rows.tolist())
        return self.of(rows), 10 + len(self.chunks)


def draw(parts, drawing, finish=lambda drawn: None, settings=SETTINGS, **options):
    draw_parts(parts, settings, drawing, SIZE, finish, **options)


def recipe_of(name):
    """A recipe of gray images, of text or of arrays, and what its samples are."""
    if name == "text":
        return replace(mdlm.smoke(), data=Text("shakespeare")), lambda rows: rows[:, None] * torch.tensor([1, 2]) % 27
    if name == "arrays":
        return replace(edm.smoke(), data=Tensors("none.npy")), lambda rows: levels_of(rows) / 7 - 1
    return ddpm.smoke(), lambda rows: levels_of(rows)[:, :1]


@pytest.mark.parametrize("name", ["a.npz", "folder", "text.npz", "text.txt", "arrays.npz", "arrays.npy", "a.png"])
def test_a_stopped_command_goes_on(tmp_path, name):
    """Each chunk is drawn once, nothing but the samples is left, and they are read back as they were drawn."""
    recipe, of = recipe_of(name.split(".")[0])
    parts, label = Parts(tmp_path / name, COUNT, Quantization(17)), torch.arange(COUNT) % 3

    def finish(drawn):
        nonlocal found
        found = drawn
        write_samples(parts, recipe, ABOUT, None if "text" in name else label)

    found, first, second = None, Drawing(of, stop=2), Drawing(of)
    with (
        pytest.warns(Notice, match=f"^6 of 11 samples are in .*{name}.parts: the same command draws the others"),
        pytest.raises(KeyboardInterrupt),
    ):
        draw(parts, first, finish)
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.parts"]
    with pytest.warns(Notice, match="^continuing: 6 of 11 samples are there"):
        draw(parts, second, finish)
    assert first.chunks + second.chunks == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert (found.new, found.evaluations) == (5, 12)
    once = Parts(tmp_path / f"once_{name}", COUNT, Quantization(17))
    draw(once, Drawing(of), lambda drawn: write_samples(once, recipe, ABOUT, None if "text" in name else label))
    beside = [f"{name}.json"] * name.endswith((".npy", ".txt"))
    assert {p.name for p in tmp_path.iterdir()} == {n for m in (name, *beside) for n in (m, f"once_{m}")}
    if name == "folder":
        assert not list(once.path.glob(".*"))
        assert len(list(once.path.iterdir())) == COUNT + 2
    else:
        assert parts.path.read_bytes() == once.path.read_bytes()
    if name == "a.png":
        return
    read = read_samples(tmp_path / name)
    assert read.origin == Origin("Ancestral()", 7)
    if name == "text.txt":
        assert read.texts == tuple(Text("shakespeare").read_tokenizer().decode(of(torch.arange(COUNT))))
        return
    assert torch.equal(read.k[:].double(), of(torch.arange(COUNT)).double())
    assert "text" in name or name.endswith("npy") or torch.equal(read.labels, label)


def test_files_are_those_of_numpy(tmp_path):
    recipe, of = recipe_of("images")
    parts, levels = Parts(tmp_path / "a.npz", COUNT, Quantization(17)), of(torch.arange(COUNT))
    captions = [f"number {n}" for n in range(COUNT)]
    draw(parts, Drawing(of), lambda drawn: write_samples(parts, recipe, ABOUT, torch.arange(COUNT), captions))
    with np.load(tmp_path / "a.npz") as found:
        assert list(found) == ["arr_0", "arr_1", "captions", "origin"]
        assert np.array_equal(found["arr_0"][..., 0], np.round(levels[:, 0].numpy() * (255 / 16)).astype(np.uint8))
        assert found["arr_0"].dtype == np.uint8
        assert found["captions"].tolist() == captions
        assert json.loads(str(found["origin"])) == {"kind": "images", **ABOUT}
    assert read_samples(tmp_path / "a.npz").captions == tuple(captions)
    folder = Parts(tmp_path / "folder", COUNT, Quantization(17))
    draw(folder, Drawing(of), lambda drawn: write_samples(folder, recipe, ABOUT, None, captions))
    with Image.open(tmp_path / "folder" / "000007.png") as image:
        assert np.array_equal(np.asarray(image), np.round(levels[7, 0].numpy() * (255 / 16)).astype(np.uint8))
    assert read_samples(tmp_path / "folder").captions == tuple(captions)


def test_arrays_are_written_part_by_part(tmp_path):
    """Memory holds fewer than three parts of forty."""
    rows, size = 500, 2000
    parts = (np.full((rows, size), n, np.int64) for n in range(40))
    tracemalloc.start()
    write_npz(tmp_path / "a.npz", {"arr_0": Streamed((40 * rows, size), np.dtype(np.int64), parts)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * rows * size * 8
    last = read_samples(tmp_path / "a.npz").k[torch.tensor([0, 40 * rows - 1])]
    assert (last[:, 0].tolist(), last.shape) == ([0, 39], (2, size))


def test_parts_of_other_settings_are_refused(tmp_path):
    parts = Parts(tmp_path / "a.npz", COUNT, Quantization(17))
    with pytest.warns(Notice), pytest.raises(KeyboardInterrupt):
        draw(parts, Drawing(stop=1))
    other = SETTINGS | {"seed": 5, "prompt": "a"}
    words = "a.npz.parts has samples of other settings (seed: 0 there and 5 now; prompt: None there and a now): give"
    with pytest.raises(UsageError, match=re.escape(words)):
        draw(parts, Drawing(), settings=other)
    assert parts.differences(SETTINGS) == []
    (parts.folder / "settings.json").write_text("{")
    with pytest.raises(UsageError, match="settings.json cannot be read .*: remove the folder .*a.npz.parts"):
        draw(parts, Drawing())


def test_without_any_sample_nothing_is_left(tmp_path):
    parts = Parts(tmp_path / "folder", COUNT, Quantization(17))
    with pytest.raises(ValueError, match="wrong"):
        draw(parts, Drawing(stop=0, error=ValueError("wrong")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_damaged_parts_are_drawn_again(tmp_path, name):
    _, of = recipe_of("images")
    parts = Parts(tmp_path / name, COUNT, Quantization(17))
    with pytest.warns(Notice), pytest.raises(KeyboardInterrupt):
        draw(parts, Drawing(of, stop=3))
    if name == "folder":
        parts.picture(4).write_bytes(b"")
    else:
        file = parts.files[range(3, 6)]
        file.write_bytes(file.read_bytes()[:-1])
    again = Drawing(of)
    with pytest.warns(Notice) as said:
        draw(parts, again)
    assert again.chunks == [[3, 4, 5], [9, 10]]
    assert [str(w.message).split(": ")[-1] for w in said] == [
        "its samples are drawn again",
        "6 of 11 samples are there",
    ]


def test_another_command_at_the_same_place_is_refused(tmp_path):
    parts = Parts(tmp_path / "a.npz", COUNT, Quantization(17))
    with parts.locked(), pytest.raises(UsageError, match="another process draws samples to .*a.npz: wait for it"):
        draw(parts, Drawing())


def test_samples_that_another_command_has_finished_since_are_kept(tmp_path):
    parts = Parts(tmp_path / "a.npz", COUNT, Quantization(17))
    parts.path.write_text("of another command")  # between the choice of the path and the start of drawing
    with pytest.raises(UsageError, match="a.npz exists already, and nothing is overwritten"):
        draw(parts, Drawing())
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("name", ["arrays.npy", "text.txt"])
def test_a_stop_at_the_end_leaves_no_file_that_the_command_would_refuse(tmp_path, name, monkeypatch):
    """The file beside the samples is moved with them."""
    recipe, of = recipe_of(name.split(".")[0])
    parts = Parts(tmp_path / name, COUNT, Quantization(17))
    full = sample_writing.flush

    def stopped(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_writing, "flush", stopped)
    with pytest.raises(KeyboardInterrupt):
        draw(parts, Drawing(of), lambda drawn: write_samples(parts, recipe, ABOUT))
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.parts"]
    monkeypatch.setattr(sample_writing, "flush", full)
    with pytest.warns(Notice, match="continuing: 11 of 11"):
        draw(parts, Drawing(of), lambda drawn: write_samples(parts, recipe, ABOUT))
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}.json"}


def test_parts_that_another_node_does_not_see(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "a.npz", COUNT, Quantization(17))
    monkeypatch.setattr(sample_parts, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="5 of 11 samples are not in .*: on several nodes give an --out in a folder"):
        draw(parts, Drawing())


def test_numbers_that_are_missing():
    assert missing([], 7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert missing([range(1, 2), range(3, 6)], 8, 3) == [range(1), range(2, 3), range(6, 8)]
    assert missing([range(4), range(4, 8)], 8, 3) == []
    assert missing([range(4)], 10, 4) == [range(4, 8), range(8, 10)]


def test_chunks_that_do_not_fit_are_parts_of_their_own(tmp_path):
    parts, sizes = Parts(tmp_path / "a.npz", COUNT, Quantization(17)), []

    def of(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return levels_of(rows)

    with pytest.warns(Notice, match="do not fit into the memory of the GPU"):
        draw(parts, Drawing(of))
    assert sizes == [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert torch.equal(torch.cat(list(parts)).long(), levels_of(range(COUNT)))


def test_progress_counts_samples_and_of_one_chunk_the_steps(tmp_path):
    totals = []

    def progress(items, total, label):
        totals.append((total, label))
        return items

    class Steps(Drawing):
        def __call__(self, progress):
            list(progress(range(4), 4, "steps"))
            return self.drawn

    draw(Parts(tmp_path / "a.npz", COUNT, Quantization(17)), Steps(), progress=progress)
    draw(Parts(tmp_path / "b.npz", SIZE, Quantization(17)), Steps(), progress=progress)
    assert totals == [(COUNT, "samples"), (4, "steps")]


def test_texts_with_empty_lines(tmp_path):
    """Are read back as they were drawn."""
    texts = ["a\n\nb", "\nc", "d", "e\n", ""]

    class Lines:
        padding = None

        def read_tokenizer(self):
            return self

        def decode(self, rows, padding):
            return [texts[row] for row in rows[:, 0].tolist()]

    parts = Parts(tmp_path / "a.txt", 5, None)
    draw(parts, Drawing(lambda rows: rows[:, None]))
    about = sample_writing.write_texts(tmp_path / "a.txt", parts, Lines())
    assert about == {"kind": "texts", "lengths": [4, 2, 1, 2, 0]}
    sample_writing.write_about(tmp_path / "a.txt.json", about)
    assert read_samples(tmp_path / "a.txt").texts == tuple(texts)


@pytest.mark.filterwarnings("always::unnoise.shared.errors.Notice")
def test_a_command_that_was_stopped(tmp_path, monkeypatch, capsys):
    """The same command continues it; one with other settings takes the next name."""
    run, levels = tmp_path / "run", levels_of(range(4))[:, :1].byte()
    objective = DenoisingLoss.simple(Learned(UNet((1, 4, 3), 8, (1,), 1, (), heads=1), LinearBetas(50)))
    Trainer(objective, Training(steps=1, warmup=0), folder=run).fit(Batches(levels, 4, Quantization(17)))
    add, line = Parts.add, ("sample", str(run), "--count", "5", "--batch", "2", "--steps", "2", "--format", "npz")

    def stopped(parts, rows, *of):
        if int(rows[0]) == 4:
            raise KeyboardInterrupt
        add(parts, rows, *of)

    monkeypatch.setattr(Parts, "add", stopped)
    assert main([*line]) == 130
    assert "4 of 5 samples are in" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*line, "--seed", "1"]) == 0
    assert "5 samples in 2 network evaluations" in capsys.readouterr().out
    assert main([*line, "--batch", "3"]) == 0
    out, err = capsys.readouterr()
    assert "continuing: 4 of 5 samples are there" in err
    assert re.search(r"5 samples, 1 of them now, in 2 network evaluations and .* by DDIM: .*samples.npz", out)
    found, other = read_samples(run / "samples.npz"), read_samples(run / "samples-2.npz")
    assert (found.origin.seed, other.origin.seed) == (0, 1)
    assert replace(found.origin, seed=1) == other.origin
    assert (found.origin.sampler, found.origin.steps, found.origin.evaluations) == ("DDIM()", 2, 2)
    assert found.about["run"] == "run"
    assert found.quantization.levels == 17
