"""Every benchmark runs from end to end in its smallest form, so that a method it calls is not removed unnoticed."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as suite
from benchmarks import floors, gpu, gpu_parts, machine, memory, page, precision, samplers, scaling, timing
from benchmarks.timing import Contender, Effort, Row, Workload
from unnoise.experiments import evaluation
from unnoise.experiments.papers import ddpm

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def smoke():
    """The rows of the whole suite in its smallest form, and its notes."""
    with timing.threads():
        return suite.run(suite.Settings(smoke=True), timing.SMOKE)


def test_every_row_computes_what_its_reference_does(smoke):
    rows, notes, good = smoke
    assert good, notes
    assert len(rows) + len(notes) == len(suite.rows_of(suite.Settings(smoke=True)))
    for row in rows:
        figures = [row.ratio, row.low, row.high, *row.cost.values(), *row.over.values()]
        assert all(0 <= figure < math.inf for figure in figures), row
        assert row.equal, row.name


def test_rows_of_the_suite():
    quick, full = (suite.rows_of(suite.Settings(full=full)) for full in (False, True))
    assert set(quick) < set(full)
    assert len(set(suite.rows_of(suite.Settings(only=("ddim", "likelihood"))))) > 5
    assert not suite.rows_of(suite.Settings(only=("no such row",)))
    with pytest.raises(SystemExit, match="no row contains no such row: see --list"):
        suite.run(suite.Settings(only=("no such row",)), timing.SMOKE)
    for expected in (*samplers.METHODS, "MDLM, K = 27, 2 x 1024", "uniform, K = 131,072, 2 x 1024", "unnoise --help"):
        assert expected in quick


def test_a_row_that_computes_something_else_is_not_timed(monkeypatch, capsys):
    ones, twos = torch.ones(3), torch.full((3,), 2.0)
    wrong = Workload(
        "wrong", "g", "call", Contender(lambda: 0), "b", {"b": Contender(lambda: 0)},
        lambda: timing.asserted(ones, twos, "sums"),
    )  # fmt: skip
    monkeypatch.setattr(suite, "rows_of", lambda settings: {"wrong": lambda: wrong})
    rows, notes, good = suite.run(suite.Settings(), timing.SMOKE)
    assert (rows, good) == ([], False)
    assert notes == ["**wrong is not measured: sums differ by 5.0e-01, more than 1e-05**"]
    assert "NOT EQUAL" in capsys.readouterr().out


def test_page(smoke, tmp_path):
    rows, notes, _ = smoke
    points = [row_of(2.0 * at, series="DDIM: a sample over the batch", at=at) for at in (1.0, 4.0)]
    kept = [*rows[:4], *(row for row in rows if row.group == "memory"), *points]
    (tmp_path / "demo.json").write_text(json.dumps({"minutes": 3.9, "target": 4, "date": "a day"}))
    page.write(tmp_path, kept, machine.described(), notes)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in kept]
    assert {"machine", "torch", "date", "commit"} <= set(written["about"])
    assert written["series"]["DDIM: a sample over the batch"]["slope"] == pytest.approx(1.0)
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row.name}, for each {row.unit} |" in text for row in rows[:4])
    assert "minutes 3.9, target 4, date a day." in text
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("figure.png", "scaling.png"))


def row_of(cost, **further):
    ratio, targets, costs = (cost,) * 3, (None,) * 3, {"ours": cost, "base": 1.0}
    return Row("r", timing.SCALING, "call", "base", *ratio, *targets, "ms", costs, {}, "", 1, **further)


def test_a_ratio_is_within_a_round():
    times = {"a": [2.0, 20.0, 6.0], "b": [1.0, 10.0, 2.0]}
    assert timing.ratios(times, "a", "b") == [2.0, 2.0, 3.0]
    assert timing.ratios(times, "a", "b", 0.5) == [1.0, 1.0, 1.5]
    assert timing.quartiles([2.0, 2.0, 3.0]) == (2.0, 2.0, 2.5)


def test_a_row_of_known_times():
    """Ours takes 3 s for 2 units, the base 1 s for 1, and everything twice as long in each second round."""
    order = []

    def work(name, seconds):
        def call():
            order.append(name)
            return seconds * (1 + (order.count(name) + 1) % 2)

        return call

    workload = Workload(
        "w", "g", "unit", Contender(work("ours", 3.0), 2), "base",
        {"base": Contender(work("base", 1.0)), "peer": Contender(work("peer", 4.0))},
        lambda: "nothing", 1.5, clock=timing.returned,
    )  # fmt: skip
    row = timing.measured(workload, Effort(0.0, 0.0, 3, 3))
    assert (row.ratio, row.low, row.high, row.rounds) == (1.5, 1.5, 1.5, 3)
    assert row.cost == {"ours": 1500.0, "base": 1000.0, "peer": 4000.0}
    assert row.over == {"base": 1.5, "peer": 0.375}
    assert row.met
    assert order == ["ours", "base", "peer", "base", "peer", "ours", "peer", "ours", "base"]  # each is first in turn


def test_memory_of_a_known_tensor():
    def make(size):
        kept = []
        return lambda: kept.append(torch.ones(size))

    megabytes = memory.here(make, 8_000_000)() / 1e6
    assert 31 < megabytes < 40


def test_the_bare_flow_is_the_exact_one():
    flow, x = floors.VPFlow(steps=25), torch.randn(2, 3, dtype=torch.float64)
    found = flow(flow.plan(), samplers.half, x)
    assert timing.apart(found, x * flow.growth(0.5, 300)) < 1e-4


def test_a_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    found = scaling.rank(4, 1)
    assert 0 < found.seconds < math.inf
    assert found.weights == pytest.approx(scaling.rank(4, 1).weights, rel=1e-9)


def test_precision():
    found = precision.losses(ddpm.smoke(), steps=2, draws=1)
    assert abs(found["auto"] / found["float32"] - 1) < 0.02


def table_of(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize(("part", "rows"), [("training", 3), ("sampling", 2), ("samplers", 4), ("discrete", 8)])
def test_gpu_rehearsal(part, rows, tmp_path):
    path = tmp_path / f"{part}.md"
    assert gpu.main(gpu.Settings(part=part, rehearse=True, out=path)) == 0
    found = table_of(path)
    assert len(found) == rows
    assert all(float(cell.replace(",", "")) >= 0 for row in found for cell in row[2:4])


def test_gpu_figures(tmp_path, capsys, monkeypatch):
    full = evaluation.judge_of  # a classifier that is trained for a moment only
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress, steps=600: full(images, progress, 5))
    assert gpu.main(gpu.Settings(part="figures", rehearse=True, out=tmp_path / "figures.md")) == 0
    (row,) = table_of(tmp_path / "figures.md")
    assert row[:2] == ["digits", "8"]
    assert float(row[3]) > 0
    assert (tmp_path / "digits.png").is_file()
    section = gpu_parts.Section(tmp_path / "again.md", "again", ["a"])
    assert not gpu_parts.succeeds(section, ["sample", str(tmp_path / "nothing")])
    assert "has failed: unnoise: " in (tmp_path / "again.md").read_text()


def test_gpu_page_keeps_what_was_measured(tmp_path, monkeypatch):
    assert list(gpu_parts.PARTS) == list(gpu.LIMITS)
    script = tmp_path / "part.py"
    script.write_text(
        "import sys, time\nname, out = sys.argv[3], sys.argv[5]\n"
        "if name != 'tests': open(out, 'w').write(f'## {name}\\n\\n| row of {name} |\\n')\n"
        "if name == 'training': sys.exit('the reason')\nif name == 'sampling': time.sleep(60)\n"
    )
    started = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda command, **k: started([sys.executable, str(script), *command[2:]], **k)
    )
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.LIMITS, 2 * gpu.MINUTES))  # 2 s in one minute
    begin, out = time.monotonic(), tmp_path / "page.md"
    parts = ("tests", "training", "sampling", "discrete")
    assert gpu.main(gpu.Settings(out=out, parts=parts, minutes=1, rehearse=True)) == 1
    assert time.monotonic() - begin < 30
    text = out.read_text()
    assert text.startswith("# Rehearsal on a CPU")
    assert "No figure here measures anything" in text
    assert all(f"| row of {name} |" in text for name in parts[1:])
    assert "**failed (exit status 1): the reason**" in text
    assert "**stopped after 2 s" in text
    assert text.count("**failed") == text.count("**stopped") == 1
    gpu.main(gpu.Settings(out=out, parts=("discrete",), minutes=0))
    assert out.read_text().startswith("# Figures on a GPU")
    assert "**left out, because no time was left**" in out.read_text()
