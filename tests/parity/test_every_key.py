"""Every array of another codebase in tests/fixtures is compared in this folder, or listed here with a reason.

Each test module in this folder has the name of its fixture, and `READS`: regular expressions of the arrays that it
compares, including the inputs from which it computes them. They are checked against the strings in the module's code.
"""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import FIXTURES

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "fixtures"  # where the fixtures come from; the project works without it
NAMES = sorted(path.stem for path in FIXTURES.glob("*.npz"))

UNREAD = {
    "metrics": {
        r"kid\.whole\.(rbf|biased|u-statistic)": "KID has the cubic kernel and the unbiased estimate",
        r"isc\..+\.equal_parts\..+": "the splits here contain all images",
        r"prdc\..+\.f_score\..+|prdc\.k3\.realism": "neither the mean of precision and recall nor realism is here",
        r"prdc\.lattice\..+\.(precision|recall)\.prdc": "the border of a ball belongs to it here",
        r"(cmmd|vendi)\..+": "neither CMMD nor the Vendi score is here",
    },
    "remdm": {
        r"forward-backward\..+": "no strategy here remasks by more than its bound",
        r"confidence|remdm-conf\..+": "no strategy here remasks by confidence; confidence is read by nothing else",
        r"remdm-loop_0\.02\..+": "no schedule here stands still, as the loop does",
        r"dfm\..+": "the corrector of discrete flow matching is not part of this package",
    },
    "uniform_continuous": {
        r"gamma|gaussian\..+": "Duo's discrete alpha of a Gaussian process is not part of this package, and nothing "
        "else reads gamma",
    },
}
"""Arrays that are compared nowhere: fixture -> regular expression -> reason."""

NOT_COPIED = {
    "bd3lm_dit": "no block diffusion here",
    "consistency": "no consistency training here, and progressive distillation is on a grid of t = n / N, not on "
    "Karras noise levels",
    "edm2_net": "no magnitude-preserving network here",
    "gidd": "no process here resamples from a distribution that changes with time, as GIDD's (masks, uniform) does",
    "meanflow": "no mean flows here",
}
"""Files of the shared folder that have no copy: name -> reason."""


@cache
def module(name: str) -> ast.Module:
    return ast.parse((HERE / f"test_{name}.py").read_text())


def declares(node: ast.AST) -> bool:
    """Whether this is the assignment of READS."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READS"


@cache
def reads(name: str) -> tuple[str, ...]:
    (declaration,) = filter(declares, module(name).body)
    return ast.literal_eval(declaration.value)


@cache
def arrays(name: str) -> list[str]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return file.files


def strings(node: ast.AST) -> set[str]:
    """The strings in code, with a star where a value is put in; docstrings and READS do not count."""
    if declares(node) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return set()
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.JoinedStr):
        whole = "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
        return {whole}.union(*(strings(part.value) for part in node.values if isinstance(part, ast.FormattedValue)))
    return set().union(*map(strings, ast.iter_child_nodes(node)))


@cache
def parts(name: str) -> set[str]:
    """Regular expressions of what stands between the dots of strings in a module's code."""
    pieces = {piece for string in strings(module(name)) for piece in string.split(".") if piece.strip("*")}
    return {re.escape(piece).replace(r"\*", ".+") for piece in pieces}


@cache
def loads_state(name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "peer_state" for node in ast.walk(module(name)))


def named(name: str, key: str) -> bool:
    """Whether each part of a key, between its dots, is one of a string in the module's code, but for numbers."""
    if key.startswith("state:"):
        return loads_state(name)
    return all(re.fullmatch(r"[\d_]+", part) or matched(parts(name), part) for part in key.split("."))


def matched(patterns, key: str) -> list[str]:
    return [p for p in patterns if re.fullmatch(p, key)]


def test_tables_are_of_fixtures_and_modules():
    assert {path.stem for path in FIXTURES.glob("*.json")} == set(NAMES)
    modules = {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")} - {"every_key"}
    assert modules == set(NAMES)
    assert set(UNREAD) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_array_is_read_or_has_a_reason(name):
    reasons = UNREAD.get(name, {})
    read = {key: matched(reads(name), key) for key in arrays(name)}
    excused = {key: matched(reasons, key) for key in arrays(name)}
    assert [key for key in arrays(name) if not (read[key] or excused[key])] == []
    assert [key for key in arrays(name) if read[key] and excused[key]] == [], "the reason is stale"
    for patterns, found in ((reads(name), read), (reasons, excused)):
        assert set(patterns) == {p for hits in found.values() for p in hits}, "a pattern matches nothing"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_stands_in_the_code(name):
    """Else READS could claim what no test looks at any more."""
    assert [key for key in arrays(name) if matched(reads(name), key) and not named(name, key)] == []


def test_shared_fixtures_have_a_copy_or_a_reason():
    if not SHARED.is_dir():
        pytest.skip("the shared folder is not here")
    shared = {path.stem for path in SHARED.glob("*.npz")}
    assert shared - set(NAMES) == set(NOT_COPIED)
    for name in shared & set(NAMES):
        for suffix in (".npz", ".json"):
            assert (SHARED / f"{name}{suffix}").read_bytes() == (FIXTURES / f"{name}{suffix}").read_bytes(), name
