"""Benchmarks run from end to end on tiny networks, and compare what is alike."""

from benchmarks import networks


def test_networks():
    rows, notes = networks.smoke()
    assert {row[0] for row in rows} == {"forward", "training step"}
    assert all(len(row) == len(networks.HEAD) for row in rows)
    assert all(float(row[2]) > 0 for row in rows if row[2])
    assert all(row[5] in ("yes", "no") for row in rows if row[4])
    if not any(note.startswith("diffusers is left out") for note in notes):
        same = next(note for note in notes if "with the weights of diffusers" in note)
        assert float(same.split(" by ")[1].split()[0]) < 1e-4
        assert any(row[1] == "UNet, DDPM / diffusers UNet2DModel" for row in rows)  # so neither parameters nor operations differ


def test_a_ratio_is_within_a_round():
    times = {"a": [2.0, 20.0, 6.0], "b": [1.0, 10.0, 2.0]}
    assert networks.ratio(times, "a", "b") == [2.0, 2.0, 3.0]
    assert networks.ratio(times, "a", "b", 0.5) == [1.0, 1.0, 1.5]
    assert networks.row("", "", [2.0, 2.0, 3.0], 2.0)[2:] == ["2.000", "2.000 to 2.500", "2.00", "yes"]
    assert networks.row("", "", [2.0, 2.1, 3.0], 2.0)[-1] == "no"
