"""Whole processes: how soon the command line answers, what a sample of one image costs, what an import costs.

The time is the processor time of the child process, on one thread and with files in the cache of the system: what one
waits for on an idle machine. Ratios are to the process that does the least of the same kind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial

from .machine import ROOT, scratch
from .timing import Contender, Work, Workload, children_seconds

GROUP = "whole processes"
PYTHON, TORCH = "python -c pass", "python -c 'import torch'"
COMMANDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unnoise --help": (("--help",), 0, "train"),
    "unnoise recipes": (("recipes",), 0, "ddpm-digits"),
    "unnoise train --help": (("train", "--help"), 0, "ddpm-digits"),
    "a refused option": (("train", "ddpm-digits", "--scheduel", "cosine"), 2, "--scheduel"),
}
"""For each row the words of the command, its exit status, and what it prints among other things."""


@cache
def bytecode() -> str:
    """Returns the folder of the bytecode of all processes."""
    return str(scratch() / "bytecode")


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in the project's folder on one thread, with its output as text.

    Modules are read as bytecode, as those of an installed package are: the first run writes it.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPYCACHEPREFIX": bytecode()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def python(code: str) -> Work:
    """Returns a work that runs code in a new interpreter."""
    return lambda: run([sys.executable, "-c", code]).check_returncode()


def unnoise(*words: str) -> Work:
    """Returns a work that runs the command line in a new interpreter."""
    return lambda: run([sys.executable, "-m", "unnoise", *words])


def command(name: str, smoke: bool) -> Workload:
    """Returns a command that answers without computing anything."""
    words, status, expected = COMMANDS[name]

    def equal() -> str:
        done = run([sys.executable, "-m", "unnoise", *words])
        text = done.stdout + done.stderr
        assert done.returncode == status, f"exit status {done.returncode}: {text[-300:]}"
        assert expected in text, f"{expected} is not in the output: {text[-300:]}"
        return f"exit status {status} and its message"

    return Workload(
        name=name,
        group=GROUP,
        unit="process",
        ours=Contender(unnoise(*words)),
        base=PYTHON,
        references={PYTHON: Contender(python("pass"))},
        equal=equal,
        target_ms=400.0,
        clock=children_seconds,
        rounds=1 if smoke else 9,
    )


def sample(smoke: bool) -> Workload:
    """Returns `unnoise sample`, one image in one step, beside the import of torch."""
    folder = scratch()
    trained, picture = folder / "run", folder / "samples.png"
    done = run([sys.executable, "-m", "unnoise", "train", "ddpm-smoke", "--out", str(trained)])
    assert done.returncode == 0, done.stderr[-300:]
    words = ("sample", str(trained), "--count", "1", "--steps", "1", "--out", str(picture))

    def equal() -> str:
        done = run([sys.executable, "-m", "unnoise", *words])
        assert not done.returncode, done.stderr[-300:]
        assert picture.is_file(), f"{picture} is not written"
        return "a picture"

    return Workload(
        name="unnoise sample, one image, one step",
        group=GROUP,
        unit="process",
        ours=Contender(unnoise(*words)),
        base=TORCH,
        references={TORCH: Contender(python("import torch"))},
        equal=equal,
        target=1.3,
        clock=children_seconds,
        rounds=1 if smoke else 7,
    )


def imported(package: str, base: str, smoke: bool) -> Workload:
    """Returns the import of a package in a new interpreter, beside that of torch or an empty program."""

    def equal() -> str:
        done = run([sys.executable, "-c", f"import {package}; print({package}.__name__)"])
        assert done.stdout.strip() == package, done.stderr[-300:]
        return "the package"

    return Workload(
        name=f"import {package}",
        group=GROUP,
        unit="process",
        ours=Contender(python(f"import {package}")),
        base=base,
        references={base: Contender(python("pass" if base == PYTHON else "import torch"))},
        equal=equal,
        target=1.1,
        clock=children_seconds,
        rounds=1 if smoke else 7,
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name; the smoke form imports the package alone."""
    if smoke:
        return {"import unnoise": partial(imported, "unnoise", PYTHON, smoke)}
    return {
        **{name: partial(command, name, smoke) for name in COMMANDS},
        "unnoise sample, one image, one step": partial(sample, smoke),
        "import unnoise.sde": partial(imported, "unnoise.sde", TORCH, smoke),
    }
