"""`unnoise compare`: one table, one protocol a column, refusals that name what differs, marks of the best."""

import csv
import json
import math
from dataclasses import replace

import pytest

from unnoise.experiments.cli import main
from unnoise.experiments.comparison import REMEDIES, best_of, compare, number
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.measurement import LABELS, Evaluation, Measurement, Origin, Protocol

FID = Protocol(
    "inception", "6726825d0af5aa", "TensorFlow 1 bilinear to 299 x 299", "digits, train, 1437 images", "ab12cd", 500
)
BOUND = Protocol(reference="digits, test, 360 images", samples=360, settings="upper bound, 100 terms", coded=True)
ORIGIN = Origin("DDIM(eta=0.5)", 50, 50, "Decay(0.999)", "float32", 0, "0.3.0")


def fid(value, protocol=FID, **more):
    given = {"error": 0.5, "better": "lower", "held_out": 2.0, "origin": ORIGIN} | more
    return Measurement("fid", value, protocol, **given)


def bits(value, error=0.01, protocol=BOUND):
    return Measurement(
        "bits_per_dim", value, protocol, Origin(seed=1, weights="Decay(0.999)"), error, "bits/dim", "lower"
    )


def write(path, *measurements, **about):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(Evaluation({"train": "digits"} | about, measurements).as_json()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two(folder):
    write(folder / "a" / "evaluation.json", fid(10.0), bits(2.0))
    write(folder / "b" / "evaluation.json", fid(15.0), bits(2.01))
    return folder


def cells(text, name):
    """The cells of the row of a name, in the text of a comparison."""
    line = next(line for line in text.splitlines() if line.split("  ")[0] == name)
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_table_of_two_runs(two):
    found = compare(["a", "b/"])
    assert found.head() == ["run", "sampler", "steps", "evaluations", "weights", "seed", "fid", "bits_per_dim"]
    first = ["a", "DDIM(eta=0.5)", "50", "50", "Decay(0.999)", "0 / 1"]
    assert found.rows() == [
        [*first, "10.00 ± 0.50 *", "2.000 ± 0.010"],
        ["b", *first[1:], "15.00 ± 0.50", "2.010 ± 0.010"],
        ["real held-out data", *[""] * 5, "2", ""],
    ]
    notes = "\n".join(found.notes())
    assert f"fid: {FID.short()}; lower is better" in notes
    assert f"bits_per_dim: {BOUND.short()}; lower is better" in notes
    assert "standard error of each number alone" in notes
    assert "paired differences are not known" in notes
    assert "twice the standard error" in notes


@pytest.mark.parametrize(
    ("a", "b", "best"),
    [
        (fid(10.0), fid(11.5), 0),  # 1.5 > 2 sqrt(0.5)
        (fid(10.0), fid(11.4), None),
        (fid(11.5), fid(10.0), 1),
        (fid(10.0, better="higher"), fid(11.5, better="higher"), 1),
        (fid(1.0, better="closer"), fid(5.0, better="closer"), 0),  # distances 1 and 3 from the held-out 2
        (fid(0.0, better="closer"), fid(2.1, better="closer"), 1),
        (fid(5.0, better="closer", held_out=None), fid(1.0, better="closer", held_out=None), None),
        (fid(1.0, better=""), fid(5.0, better=""), None),
        (fid(1.0, error=None), fid(5.0), None),
        (fid(1.0, error=math.nan), fid(5.0), None),
        (fid(math.nan), fid(5.0), None),
        (fid(1.0), None, None),
    ],
)
def test_best_is_better_by_more_than_twice_the_error_of_the_difference(a, b, best):
    assert best_of([a, b]) == best


def test_best_of_three_is_better_than_each():
    assert best_of([fid(10.0), fid(12.0), fid(20.0)]) == 0
    assert best_of([fid(10.0), fid(11.0), fid(20.0)]) is None
    assert best_of([fid(20.0), fid(10.0, error=3.0), fid(15.0)]) is None
    assert best_of([None, fid(15.0), fid(10.0)]) == 2


def test_numbers_have_the_digits_of_their_errors():
    assert number(fid(3.14159, error=0.0123)) == "3.142 ± 0.012"
    assert number(fid(123.456, error=12.0)) == "123 ± 12"
    assert number(fid(3.14159, error=None)) == number(fid(3.14159, error=math.nan)) == "3.1416"
    assert number(fid(math.nan)) == "not finite"


FIELDS = {
    "features": "dinov2",
    "features_hash": "ffffffffffff",
    "resize": "bicubic",
    "reference": "mnist",
    "reference_hash": "eeee",
    "samples": 300,
    "settings": "k=5",
}


@pytest.mark.parametrize("field", FIELDS)
def test_different_protocols_are_refused(two, field, capsys):
    """The message names the measure, the field, both values and the remedy; no other measure is affected."""
    assert set(FIELDS) == set(LABELS) == set(REMEDIES)
    other = replace(FID, **{field: FIELDS[field]})
    write(two / "b" / "evaluation.json", fid(15.0, other), bits(2.01))
    assert main(["compare", "a", "b"]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    for words in (
        "fid of a and b",
        f"{LABELS[field]}: {getattr(FID, field) or 'none'} and {FIELDS[field]}",
        REMEDIES[field],
        "`unnoise evaluate b",
        "--apart",
    ):
        assert words in error, words
    assert ("`unnoise evaluate b --samples 500`" in error) == (field == "samples")
    assert main(["compare", "a", "b", "--measures", "bits_per_dim"]) == 0


def test_number_of_coded_examples_is_an_option_of_its_own(two):
    write(two / "b" / "evaluation.json", bits(2.01, protocol=replace(BOUND, samples=100)))
    with pytest.raises(UsageError, match="number of samples: 360 and 100: .* `unnoise evaluate b --count 360`"):
        compare(["a", "b"])


def test_apart_gives_each_protocol_a_column(two):
    write(two / "b" / "evaluation.json", fid(15.0, replace(FID, resize="bicubic")), bits(2.01))
    found = compare(["a", "b"], apart=True)
    assert found.head()[6:] == ["fid (a)", "fid (b)", "bits_per_dim"]
    assert [row[6:] for row in found.rows()[:2]] == [
        ["10.00 ± 0.50", "-", "2.000 ± 0.010"],
        ["-", "15.00 ± 0.50", "2.010 ± 0.010"],
    ]
    assert any(line.startswith("fid (b): inception #672682, bicubic,") for line in found.notes())
    assert compare(["a"], apart=True).head()[6:] == ["fid", "bits_per_dim"]


def test_newest_evaluation_of_the_protocol_is_taken(two):
    """evaluation.json is the newest, then the largest number; an earlier one is taken with a line."""
    other = replace(FID, samples=300)
    write(two / "b" / "evaluation-1.json", fid(1.0))
    write(two / "b" / "evaluation-2.json", fid(2.0))
    write(two / "b" / "evaluation-10.json", fid(3.0), bits(2.2))
    write(two / "b" / "evaluation.json", fid(15.0, other), bits(2.01))
    with pytest.warns(Notice, match="fid of b is that of an earlier evaluation, evaluation-10.json"):
        found = compare(["a", "b"])
    assert [row[6] for row in found.rows()[:2]] == ["10.00 ± 0.50", "3.00 ± 0.50 *"]
    assert found.rows()[1][7] == "2.010 ± 0.010"
    write(two / "a" / "evaluation-1.json", fid(7.0, other))
    with pytest.warns(Notice):  # both have both: the newest of the first decides
        assert compare(["a", "b"]).rows()[0][6] == "10.00 ± 0.50"


def test_measures_that_one_lacks_have_a_gap(two):
    write(two / "b" / "evaluation.json", bits(2.01))
    found = compare(["a", "b"], ["fid"])
    assert [row[6] for row in found.rows()[:2]] == ["10.00 ± 0.50", "-"]
    assert found.rows()[1][1:6] == [""] * 5


def test_everything_that_can_be_compared(folder):
    """A run, one of its checkpoints, an .npz and a text with a file beside, a run of an ablation."""
    write(folder / "run" / "evaluation.json", fid(1.0))
    (folder / "other" / "checkpoints" / "8").mkdir(parents=True)
    write(folder / "other" / "evaluation.json", fid(2.0))
    for name in ("x.npz", "x.txt"):
        (folder / name).touch()
        write(folder / f"{name}.evaluation.json", fid(3.0))
    write(folder / "x.npz.evaluation-1.json", fid(9.0))
    write(folder / "grid" / "runs" / "k-seed0.json", fid(4.0))
    stored = folder / "grid" / "runs" / "k-seed0.json"
    stored.write_text(json.dumps({"seed": 0, "evaluation": json.loads(stored.read_text())}))
    names = ["run", "other/checkpoints/8", "x.npz", "x.txt", "grid/runs/k-seed0.json"]
    rows = compare(names).rows()
    assert [row[0] for row in rows[:-1]] == names
    assert [row[6].split(" ±")[0] for row in rows[:-1]] == ["1.00", "2.00", "3.00", "3.00", "4.00"]


def test_lines_of_what_cannot_be_compared(two, capsys):
    (two / "new").mkdir()
    (two / "old").mkdir()
    (two / "old" / "evaluation.json").write_text('{"bits_per_dim": 2.0}')
    (two / "broken").mkdir()
    (two / "broken" / "evaluation.json").write_text("{")
    (two / "wrong").mkdir()
    (two / "wrong" / "evaluation.json").write_text('{"measurements": [3]}')
    (two / "grid").mkdir()
    (two / "grid" / "ablation.json").write_text("{}")
    (two / "failed.json").write_text('{"failure": "out of memory"}')
    for words, message in (
        (["a", "new"], "new has not been evaluated: run `unnoise evaluate new`"),
        (["a", "old"], "of an earlier version, which did not write how its numbers were measured: evaluate again"),
        (["a", "nowhere"], "there is no nowhere"),
        (["a", "broken"], "evaluate again with `unnoise evaluate broken`"),
        (["a", "wrong"], "evaluate again with `unnoise evaluate wrong`"),
        (["a", "grid"], "grid is an ablation: give runs of it, files of grid/runs"),
        (["a", "failed.json"], "failed (out of memory): leave it out"),
        (["a", "b", "a/"], "a is given twice"),
        (["a", "b", "--measures", "kid"], "kid was measured of none of a, b: choose from fid, bits_per_dim"),
        (["a", "b", "--out", "table.xls"], "table.xls"),
        ([], "give what to compare"),
    ):
        assert main(["compare", *words]) == 2, words
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1


def test_text_is_aligned_within_100_columns(two, capsys):
    more = [replace(fid(1.0), name=f"precision_of_features_{n}") for n in range(6)]
    write(two / "a" / "evaluation.json", fid(10.0), *more)
    write(two / "b" / "evaluation.json", fid(15.0))
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    tables = out.split("± is")[0].rstrip().split("\n\n")
    assert len(tables) > 1
    for table in tables:
        lines = table.splitlines()
        assert max(map(len, lines)) <= 100
        assert [line.split("  ")[0].strip() for line in lines] == ["run", "a", "b", "real held-out data"]
        column = lines[0].rindex("  ") + 2
        assert all(line[column - 1 : column] in (" ", "") for line in lines)
    assert all(sum(f"_{n}" in table for table in tables) == 1 for n in range(6))


def test_files_by_their_endings(two, capsys):
    for name in ("table.md", "table.html", "table.csv"):
        assert main(["compare", "a", "b", "--out", name]) == 0
        assert f"written to {name}" in capsys.readouterr().out
    page = (two / "table.md").read_text()
    assert "| a | DDIM(eta=0.5) | 50 | 50 | Decay(0.999) | 0 / 1 | 10.00 ± 0.50 \\* | 2.000 ± 0.010 |" in page
    assert "<table" in (two / "table.html").read_text()
    assert "<script" not in (two / "table.html").read_text()
    with (two / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["measure"], float(row["value"])) for row in rows] == [
        ("a", "fid", 10.0),
        ("b", "fid", 15.0),
        ("a", "bits_per_dim", 2.0),
        ("b", "bits_per_dim", 2.01),
    ]
    assert rows[0]["sampler"] == "DDIM(eta=0.5)"
    assert rows[0]["protocol_samples"] == "500"
    assert rows[2]["held_out"] == ""


def test_notes_of_measurements_stand_below(two):
    write(two / "b" / "evaluation.json", fid(15.0, note="biased: fewer samples than features"))
    assert any("biased: fewer samples than features" in line for line in compare(["a", "b"]).notes())


def test_remarks_that_differ_name_their_run(two):
    """What is true of all numbers of a column stands alone."""
    write(two / "a" / "evaluation.json", fid(10.0, note="upper bound; 30 real images"))
    write(two / "b" / "evaluation.json", fid(15.0, note="exact; 30 real images"))
    line = next(line for line in compare(["a", "b"]).notes() if line.startswith("fid: "))
    assert line.endswith("; lower is better; a: upper bound; 30 real images; b: exact")


def test_measures_by_one_protocol_share_a_line(two):
    write(two / "a" / "evaluation.json", fid(10.0), replace(fid(1.0), name="sfid"))
    assert any(line.startswith("fid, sfid: inception #672682, ") for line in compare(["a"]).notes())
