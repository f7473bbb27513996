"""Draws and measures runs by the command line and from Python, in one process or in two."""

import json
import sys
from pathlib import Path

import torch
from two_processes import in_two_processes

import unnoise
from unnoise.experiments.cli import main
from unnoise.experiments.evaluation import bits_per_dim
from unnoise.experiments.pretrained.imported import run_of
from unnoise.shared.data import image_dataset
from unnoise.shared.distributed import is_main, processes

COMMANDS = {
    "images": ("sample", "ddpm", "--count", "7", "--batch", "2"),
    "one": ("sample", "ddpm", "--count", "1"),
    "text": ("sample", "mdlm", "--count", "3", "--batch", "2", "--length", "24"),
}


def work(home: Path, out: Path) -> None:
    """Writes samples, code lengths and an evaluation into a folder, the same on any number of processes."""
    with processes("cpu"):
        for name, (command, run, *options) in COMMANDS.items():
            line = [command, str(home / run), *options, "--device", "cpu", "--out", str(out / f"{name}.npz")]
            assert main(line) == 0
        assert main(["evaluate", str(home / "mdlm"), "--count", "5", "--batch", "2", "--device", "cpu"]) == 0
        checkpoint = unnoise.load(home / "ddpm")
        images = image_dataset("digits", split="test").subset(5)
        bits = bits_per_dim(run_of(checkpoint), checkpoint.average.denoiser, images, size=2, shared=True)
        if is_main():
            results = json.loads((home / "mdlm" / "evaluation.json").read_text())
            results.pop("sampling_seconds")
            (out / "results.json").write_text(json.dumps({"bits": bits, "evaluation": results}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(not in_two_processes(lambda rank: work(Path(sys.argv[1]), Path(sys.argv[2]))))
