"""Measurements: their protocol and origin in words, and what they keep through files."""

import json
import math

import pytest

from unnoise.experiments.cli.computing import Computing
from unnoise.shared.metrics.errors import error_of_share
from unnoise.shared.metrics.measurement import Evaluation, Measurement, Origin, Protocol, four_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123456, "0.001235"),
        (3.70704, "3.707"),
        (123.456, "123.5"),
        (1234567.8, "1234568"),
        (0.0, "0"),
        (-2e-5, "-2e-05"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert four_digits(value) == text
    assert Measurement("kid", value).line().split()[1] == text


def test_coded_examples_are_not_called_samples():
    given = {"reference": "digits, held out", "reference_hash": "0123456789ab", "samples": 1234}
    coded, compared = Protocol(**given, coded=True), Protocol(**given)
    assert coded.short() == "1,234 examples, of digits, held out #012345"
    assert compared.short() == "1,234 samples, against digits, held out #012345"
    assert coded == compared  # evaluations of earlier versions do not have the field
    assert coded.differences(compared) == []


def test_an_evaluation_keeps_the_seed_zero_of_its_samples():
    found = Evaluation({}, [Measurement("fid", 2.0, origin=Origin("Heun()", 9, 17, seed=0))])
    merged = found.of(Origin(steps=3, weights="raw", precision="float32", seed=5, version="1"), run="mine")
    assert merged.measurement("fid").origin == Origin("Heun()", 9, 17, "raw", "float32", 0, "1")
    read = Evaluation.from_json(json.loads(json.dumps(merged.as_json())))
    assert read.measurement("fid") == merged.measurement("fid")
    assert read["run"] == "mine"


def test_shares_of_none_or_all_have_an_error():
    assert error_of_share(0.25, 12) == pytest.approx(math.sqrt(0.25 * 0.75 / 12))
    for share in (0.0, 1.0):
        assert error_of_share(share, 98) == pytest.approx(math.sqrt(0.01 * 0.99 / 98))


@pytest.mark.parametrize(("native", "name"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_auto_is_written_as_what_it_stands_for(monkeypatch, native, name):
    monkeypatch.setattr("unnoise.shared.training.precision.native_bfloat16", lambda device: native)
    assert Computing(precision="auto", device="cpu").arithmetic == name
    assert Computing(precision="tf32", device="cpu").arithmetic == "tf32"
