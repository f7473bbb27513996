"""What a figure was measured on: machine, versions, date and commit."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "scipy", "diffusers", "k-diffusion", "azula")


def cpu() -> str:
    """Returns the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()


def version(package: str) -> str:
    """Returns the version of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """Returns the commit of the working tree, with "+ changes" where files differ from it; "none" outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" + changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def scratch() -> Path:
    """Returns a new folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="unnoise-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def described() -> dict[str, str]:
    """Returns machine, versions, date and commit, by name."""
    return {
        "machine": f"{cpu()}, {os.cpu_count()} cores, {platform.system()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
    }
