"""Figures on a GPU in one command, for docs/results/gpu.md: `benchmarks/gpu.sh`, which also installs what is missing.

Each part runs in a process of its own with a limit of time, and writes its section after each row, so that a part that
fails or takes too long loses neither the other parts nor its own first rows. `--rehearse` runs all of it at the
smallest sizes on the CPU: its figures have no meaning.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

LIMITS = {"tests": 60, "training": 175, "sampling": 40, "samplers": 40, "discrete": 45, "figures": 105}
"""The parts, functions of `gpu_parts`, in their order, with the most seconds of each in `MINUTES` minutes in all."""
MINUTES = 7.75
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """Settings of the command."""

    out: Path = ROOT / "docs/results/gpu.md"
    """The page to write; pictures are written beside it, into a folder of its name."""
    parts: tuple[str, ...] = tuple(LIMITS)
    """The parts to run: tests, training, sampling, samplers, discrete, figures."""
    minutes: float = MINUTES
    """Minutes for all parts; what does not fit is stopped, and the page says so."""
    fashion: Path | None = None
    """Folder with train.parquet and test.parquet of Fashion-MNIST; None leaves it out."""
    rehearse: bool = False
    """Run everything once at the smallest sizes on the CPU."""
    part: str | None = None
    """Run one part alone in this process; for the command itself."""


def limited(command: Sequence[str], seconds: float) -> str:
    """Runs a command and returns how it ended: "" for success, otherwise a sentence.

    A command that takes longer is killed with the processes that it started.
    """
    with subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            output, _ = process.communicate(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            output = None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if output is None:
        return f"stopped after {seconds:.0f} s: what it had measured until then is above"
    if not process.returncode:
        return ""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    return f"failed (exit status {process.returncode}): {lines[-1].strip()}"


def machine() -> str:
    """Returns the device, the processor and the versions, for the head of the page."""
    import torch

    from .machine import cpu, version

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] or ["no GPU"]
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers"))
    return f"{', '.join(names)}; {cpu()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def page(settings: Settings, sections: dict[str, str], head: str, seconds: float) -> str:
    """Returns the page."""
    title = "Rehearsal on a CPU of the figures on a GPU" if settings.rehearse else "Figures on a GPU"
    about = (
        "`benchmarks/gpu.sh rehearse`: every part at its smallest size on the CPU. **No figure here measures "
        "anything**: the page shows that each part runs. `benchmarks/gpu.sh` on a machine with a GPU replaces it."
        if settings.rehearse
        else "`benchmarks/gpu.sh`; all parts in one run."
    )
    total = f"{head}; {seconds:.0f} s in all."
    return "\n\n".join([f"# {title}", about, total, *(text.strip() for text in sections.values())]) + "\n"


def run(settings: Settings) -> bool:
    """Runs the parts, writes the page after each, and returns whether all succeeded."""
    begin, sections, good = time.monotonic(), dict[str, str](), True
    head = machine()
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.parts:
            left = settings.minutes * 60 - (time.monotonic() - begin)
            limit = LIMITS[name] * settings.minutes / MINUTES
            seconds, start = left if name == settings.parts[-1] else min(limit, left), time.monotonic()
            path = Path(folder) / f"{name}.md"
            command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(path)]
            command += ["--rehearse"] * settings.rehearse
            command += [] if settings.fashion is None else ["--fashion", str(settings.fashion.resolve())]
            ended = limited(command, seconds) if left > 0 else "left out, because no time was left"
            text = path.read_text().strip() if path.is_file() else f"## {name}"
            took = f"- {time.monotonic() - start:.0f} s"
            sections[name] = "\n\n".join([text, "\n".join([*([f"- **{ended}**"] if ended else []), took])])
            good = good and not ended
            settings.out.write_text(page(settings, sections, head, time.monotonic() - begin))
            print(f"\n{sections[name]}", flush=True)
        pictures = sorted(Path(folder).glob("*.png"))
        if pictures and not settings.rehearse:
            shown = settings.out.with_suffix("")
            shown.mkdir(exist_ok=True)
            for picture in pictures:
                (shown / picture.name).write_bytes(picture.read_bytes())
            with settings.out.open("a") as file:
                file.write("".join(f"\n![samples of {p.stem}]({shown.name}/{p.name})\n" for p in pictures))
    print(f"\nwritten to {settings.out}")
    return good


def main(settings: Settings) -> int:
    """Runs the command, and returns its exit status."""
    if settings.part is None:
        return 0 if run(settings) else 1
    from dataclasses import replace

    from . import gpu_page, gpu_parts

    sizes = replace(gpu_page.REHEARSAL if settings.rehearse else gpu_page.Sizes(), fashion=settings.fashion)
    gpu_parts.PARTS[settings.part](settings.out, sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
