"""Logs that are damaged: what can be read of them stays, and a copy of the rest is kept."""

import shutil

import pytest
from damaged_runs import CONFIG, batches, objective, refused, resume

from unnoise.shared.errors import Notice
from unnoise.shared.training import Trainer
from unnoise.shared.training.folder import curve, read_metrics


@pytest.fixture
def run(tmp_path):
    Trainer(objective(), CONFIG, folder=tmp_path / "run").fit(batches())
    return tmp_path / "run"


OTHER = "metrics.jsonl differs from what was written, by damage or by an editor$"
GOOD = b'{"step": 1, "loss": 2.5, "seconds": 7.25}\n'
BROKEN = {
    "half a line": b'{"step": 2, "lo\n',
    "bytes": b"\xff\xfe\x00\x01\n",
    "zeros": b"\0" * 64 + b"\n",
    "a list": b"[1, 2]\n",
    "a number": b"12\n",
    "no step": b'{"loss": 2.5}\n',
    "a step in words": b'{"step": "two"}\n',
    "no number": b'{"step": NaN}\n',
    "a large number": b'{"step": 1' + b"0" * 400 + b"}\n",
    "true": b'{"step": true}\n',
    "nested": b"[" * 100_000 + b"\n",
    "two lines in one": GOOD.strip() + GOOD,
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_log_is_gone_on_with(run, kind, at):
    """Lines that can be read stay as they are, byte by byte; of the others a copy is kept, and it is said."""
    shutil.rmtree(run / "checkpoints" / "00000006")
    log = run / "metrics.jsonl"
    lines = [GOOD, b'{"step": 2, "loss": 2.25, "mine": "a note", "seconds": 8}\n']
    content = b"".join(lines[:at]) + BROKEN[kind] + b"".join(lines[at:])
    log.write_bytes(content)
    assert [line["step"] for line in read_metrics(log)] == [1, 2]
    with pytest.warns(
        Notice,
        match=r"1 lines of .*metrics.jsonl cannot be read and are left out; .* is kept as .*metrics.damaged-1.jsonl",
    ):
        resume(run)
    assert log.read_bytes().startswith(b"".join(lines))
    assert (run / "metrics.damaged-1.jsonl").read_bytes() == content
    assert [line["step"] for line in read_metrics(log)] == [1, 2, 5, 6]
    assert read_metrics(log)[-1]["seconds"] > 8


def test_a_log_that_a_crash_cut_or_an_editor_left_without_its_end(run):
    """Neither is damage: half a line at the end was not finished, and a whole one without its line break counts."""
    shutil.rmtree(run / "checkpoints" / "00000006")
    (run / "metrics.jsonl").write_bytes(GOOD + b'{"step": 2, "lo')
    with pytest.warns(Notice, match=OTHER):
        resume(run)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 5, 6]
    shutil.rmtree(run / "checkpoints" / "00000006")
    (run / "metrics.jsonl").write_bytes(GOOD + b'{"step": 2}')
    with pytest.warns(Notice, match=OTHER):
        resume(run)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 5, 6]
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints" / "00000006")
    resume(run)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [5, 6]


def test_a_figure_that_has_changed_is_noticed(run):
    """By the digest in the checkpoint; lines that were written after it are not part of that."""
    shutil.rmtree(run / "checkpoints" / "00000006")
    log = run / "metrics.jsonl"
    content = log.read_bytes()
    resume(run)
    assert [line["step"] for line in read_metrics(log)] == [1, 2, 3, 4, 5, 6]
    shutil.rmtree(run / "checkpoints" / "00000006")
    place = content.index(b'"loss": ') + 12
    log.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert len(read_metrics(log)) == 6
    with pytest.warns(Notice, match=OTHER):
        resume(run)
    resume(run)  # what was continued is what is written now


def test_the_curve_of_a_damaged_log(tmp_path):
    """What can be read of it, and a word where nothing can."""
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(
        b'{"step": 1}\n{"step": 2, "a_loss": 3, "loss": 4}\n\xff\n{"step": 3, "a_loss": "x"}\n'
        b'{"step": 4, "a_loss": NaN}\n{"step": 5'
    )
    assert curve(log, "loss") == ([2], [3])
    for content in (b"", b"\xff\n", b'{"step": 1, "loss": null}\n'):
        log.write_bytes(content)
        with pytest.warns(Notice, match="has no loss that can be read, and its curve is left out"):
            assert curve(log, "loss") == ([], [])


def test_a_folder_in_the_place_of_the_log(run):
    shutil.rmtree(run / "checkpoints" / "00000006")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl" / "mine").mkdir(parents=True)
    refused(lambda: resume(run), "cannot read", "metrics.jsonl (Is a directory): move it away")
    fresh = run.parent / "fresh"
    (fresh / "metrics.jsonl").mkdir(parents=True)
    refused(lambda: Trainer(objective(), CONFIG, folder=fresh).fit(batches()), "cannot write", "metrics.jsonl")
