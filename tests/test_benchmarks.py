"""Every benchmark runs from end to end in its smallest form, so that a method it calls is not removed unnoticed."""

import math
import re

import pytest

from benchmarks import discrete, networks, sde, speed

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
