"""Every benchmark runs from end to end in its smallest form, so that a method it calls is not removed unnoticed."""

import math
import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks import discrete, gpu, gpu_parts, networks, sde, speed, training
from unnoise.experiments import evaluation

FIGURE = re.compile(r"(-?\d+\.\d+|nan|inf) x")


def figures(text):
    """The ratios of a report, all of which are finite."""
    found = [float(number) for number in FIGURE.findall(text)]
    assert all(0 <= number < math.inf for number in found), text
    return found


def test_speed(capsys):
    speed.main(smoke=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(speed.WORKS) == sum(len(figures(line)) for line in lines)


def test_discrete(capsys):
    discrete.main(smoke=True)
    out = capsys.readouterr().out
    assert len(figures(out)) == 4 + 2 * 4 + 2  # memory, losses in two precisions, steps
    assert all(
        float(n) >= 0 for n in re.findall(r"(?:product|marginal|loss, s|step, s|GB) (\S+?)(?:,|$)", out, re.MULTILINE)
    )


def test_sde(capsys):
    sde.main(smoke=True)
    out = capsys.readouterr().out
    assert len(figures(out)) == 4 * 5  # denoisers and integrators
    assert all(
        abs(float(error)) < 0.2 for error in re.findall(r"error (\S+) nats", out)
    )  # the flow's code length is the exact one


@pytest.fixture(scope="module")
def report():
    return networks.smoke()


def test_networks(report):
    rows, notes = report
    assert {row[0] for row in rows} == {"forward", "training step", "held-out loss"}
    assert all(len(row) == len(networks.HEAD) for row in rows)
    assert all(float(row[2]) >= 0 for row in rows if row[2])
    assert all(row[5] in ("yes", "no") for row in rows if row[4])
    text = networks.written(networks.SMOKE, rows, notes)
    assert all(note in text for note in notes)
    assert text.count("\n| ") >= len(rows)


@pytest.mark.parametrize(
    ("package", "name"),
    [("diffusers", "diffusers UNet2DModel"), ("denoising_diffusion_pytorch", "denoising-diffusion")],
)
def test_networks_beside(package, name, report):
    pytest.importorskip(package)
    rows, notes = report
    assert not any("is left out: " in note and note.startswith(package.replace("_", "-")) for note in notes)
    assert any(name in row[1] and row[2] for row in rows)


def test_networks_compute_what_diffusers_do(report):
    pytest.importorskip("diffusers")
    rows, notes = report
    same = next(note for note in notes if "with the weights of diffusers" in note)
    assert float(same.split(" by ")[1].split()[0]) < 1e-4
    assert any(
        row[1] == "UNet, DDPM / diffusers UNet2DModel" for row in rows
    )  # so neither parameters nor operations differ


def test_a_ratio_is_within_a_round():
    times = {"a": [2.0, 20.0, 6.0], "b": [1.0, 10.0, 2.0]}
    assert networks.ratio(times, "a", "b") == [2.0, 2.0, 3.0]
    assert networks.ratio(times, "a", "b", 0.5) == [1.0, 1.0, 1.5]
    assert networks.row("", "", [2.0, 2.0, 3.0], 2.0)[2:] == ["2.000", "2.000 to 2.500", "2.00", "yes"]
    assert networks.row("", "", [2.0, 2.1, 3.0], 2.0)[-1] == "no"


def test_training():
    text = training.main(training.Settings(smoke=True))
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    heads, rows = [c for c in cells if "target" in c[-2]], [c for c in cells if "target" not in c[-2]]
    assert len(heads) == 2
    assert len(rows) == len(training.recipes(True)) + 1
    assert all(0 < float(c[-4]) < math.inf for c in rows)
    assert training.row("x", [1.0, 1.02, 3.0], [1.0, 1.0, 2.0])[2:] == ["1.020", "1.010 to 1.260", "1.03", "yes"]
    assert training.row("x", [1.04], [1.0])[-1] == "no"


def table_of(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize(("part", "rows"), [("training", 3), ("sampling", 2), ("discrete", 8)])
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
