"""Classifier-free diffusion guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..continuous import Ancestral, Clipped, Cosine, DenoisingLoss, Learned, LogInterpolated, VariationalBound, tabulate
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.guidance import ClassifierFree, ConditionDropout
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from . import common_settings
from .images import Chain, Data, Network
from .reproduce import Study, trained

STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0)


@serializable(
    "experiments.ClassifierFreeGuidance", formerly="unnoise.experiments.classifier_free.ClassifierFreeGuidance"
)
@dataclass(frozen=True)
class ClassifierFreeGuidance(Chain):
    """Noise prediction in continuous time, trained jointly with and without class labels."""

    drop: float = 0.1
    """Probability that the class label of a training example is dropped, p_uncond, such as 0.1."""
    w: float = 0.5
    """Guidance strength w of the paper, 0 for no guidance; the "guidance scale" of other code is 1 + w."""
    share: float = 0.3
    """Interpolation weight v of the reverse log variance, from 0 (small variance) to 1 (large), such as 0.3."""
    bound_steps: int = 256
    """Number of steps of the chain whose variational bound is the code length."""

    loss_unit = "MSE of the noise"

    def __post_init__(self) -> None:
        if self.data.classes is None:
            raise UsageError(
                "classes=None: classifier-free guidance needs labels: give the number of classes, such as "
                "--data.classes 10"
            )
        if not self.network.null_label:
            raise UsageError(
                "null_label=False: classifier-free guidance needs a null label: leave out --network.no-null-label"
            )

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, classes=self.data.classes)
        return ConditionDropout(DenoisingLoss.simple(Learned(network, Cosine(-20.0, 20.0))), p=self.drop)

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.guided(denoiser, self.w)

    def guided(self, denoiser: GaussianDenoiser, w: float) -> Sampler:
        """Returns the sampler with guidance strength w."""
        return Ancestral(Clipped(ClassifierFree(denoiser, w)), LogInterpolated(self.share))

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        chain = denoiser.on(tabulate(denoiser.corruption, self.bound_steps))
        return VariationalBound(Clipped(chain), quantization, variance=LogInterpolated(self.share))

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fidelity and diversity by guidance strength w (figure 4): agreement with the label, Fréchet distance."""
        from ..shared.figures import Lines, save_lines, save_panels

        study, rows, results, panels = Study(self, folder, progress), [], {}, {}
        denoiser = trained(self, study.images, folder, progress).denoiser
        for w in STRENGTHS:
            drawn, measured = study.run(self.guided(denoiser, w), self.sampling_steps)
            results[f"w = {w:g}"] = measured
            rows.append(
                [
                    f"{w:g}",
                    f"{1 + w:g}",
                    f"{measured['agreement']:.3f}",
                    f"{measured['sure']:.3f}",
                    f"{measured['frechet']:.2f}",
                ]
            )
            panels[f"w = {w:g}"] = drawn.levels[:60].float() / (study.images.quantization.levels - 1)
        agreement, distance = ([r[key] for r in results.values()] for key in ("agreement", "frechet"))
        names = {"": [f"w = {w:g}" for w in STRENGTHS]}
        save_lines(
            folder / "figure.png",
            {
                "fidelity": Lines("w", "agreement with the requested label", {"": (STRENGTHS, agreement)}),
                "distance": Lines("w", "Fréchet distance", {"": (STRENGTHS, distance)}),
                "trade-off": Lines(
                    "agreement with the requested label", "Fréchet distance", {"": (agreement, distance)}, points=names
                ),
            },
        )
        save_panels(folder / "samples.png", panels, columns=10, across=3)
        head = ["w", "s = 1 + w", "agreement with the requested label", "sure", "Fréchet distance"]
        text = (
            f"In training the class label was dropped with probability {self.drop:g}. {self.sampling_steps} ancestral "
            "steps, with two network evaluations each where w > 0.\n\n![samples](samples.png)"
        )
        return study.write("Classifier-free guidance", text, head, rows, results)


def imagenet64() -> ClassifierFreeGuidance:
    """ImageNet 64 x 64 (table 1): FID 1.55 at w = 0.1, IS 260.2 at w = 4; 256 steps."""
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), 4, dropout=0.1, variant="adm")
    data = Data("imagenet", 2048, size=(64, 64), classes=1000, flip=True)
    return ClassifierFreeGuidance(data, network, common_settings.adm(400_000, 3e-4), 256, drop=0.1, w=0.1, share=0.3)


def imagenet128() -> ClassifierFreeGuidance:
    """ImageNet 128 x 128 (table 2): FID 2.43 at w = 0.3, IS 421 at w = 4; 256 steps."""
    network = Network(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), 4, variant="adm-heads")
    data = Data("imagenet", 256, size=(128, 128), classes=1000, flip=True)
    return ClassifierFreeGuidance(data, network, common_settings.adm(2_700_000, 1e-4), 256, drop=0.2, w=0.3, share=0.2)


def digits() -> ClassifierFreeGuidance:
    """8 x 8 digits of 17 quantization levels."""
    return ClassifierFreeGuidance(**common_settings.digits(sampling_steps=64))


def mnist() -> ClassifierFreeGuidance:
    """28 x 28 digits of 256 quantization levels."""
    return ClassifierFreeGuidance(
        **common_settings.mnist(sampling_steps=256, data=Data("mnist5k", batch=128, classes=10))
    )


def smoke() -> ClassifierFreeGuidance:
    """A test of a few seconds that every part of the recipe runs."""
    return ClassifierFreeGuidance(**common_settings.smoke(), bound_steps=8)
