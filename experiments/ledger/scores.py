"""The ledger of score models and continuous time: score SDEs, NCSN, EDM, flow matching and inverse problems."""

from __future__ import annotations

from dataclasses import replace

from .entry import CIFAR10, Entry, Expected, Here, Paper, bits, digits, fid, folder, inception_score, mnist, smoke
from .gaussian import code, frechet

BEST = "50,000 samples against the training set, the best of checkpoints each 50,000 steps"
LEAST = "the least of three FIDs of 50,000 samples against the training set"


def heun(value: str, evaluations: int) -> Expected:
    """Returns a published FID of configuration F with the VP network, by Heun's method."""
    return fid(value, f"Heun, {evaluations} evaluations", "table 2, configuration F, VP", LEAST)


SCORE_SDE = Paper(
    "Score-based generative modeling through stochastic differential equations",
    "Song et al.",
    2021,
    ("2011.13456", "2101.09258"),
    (
        Entry(
            "score-sde-cifar10",
            **CIFAR10,
            network="DDPM++ cont.",
            parameters=61_804_419,
            expected=(
                fid("2.55", "Euler-Maruyama", "table 3", BEST),
                bits("3.16", source="table 2", bound=False),
                fid("3.93", "probability flow", "table 2"),
            ),
        ),
        Entry(
            "score-sde-cifar10-subvp",
            **CIFAR10,
            network="DDPM++ cont.",
            parameters=61_804_419,
            expected=(
                fid("2.61", "Euler-Maruyama", "table 3", BEST),
                bits("3.02", source="table 2", bound=False),
                fid("3.16", "probability flow", "table 2"),
            ),
        ),
        Entry(
            "score-sde-cifar10-ve",
            **CIFAR10,
            network="NCSN++ cont.",
            parameters=62_758_787,
            expected=(fid("2.38", "predictor-corrector, 2000 evaluations", "table 3", BEST),),
        ),
        Entry(
            "score-sde-cifar10-subvp-deep",
            **CIFAR10,
            network="DDPM++ cont. deep",
            parameters=106_632_579,
            expected=(
                fid("2.41", "Euler-Maruyama", "table 3", BEST),
                bits("2.99", source="table 2", bound=False),
                fid("2.92", "probability flow", "table 2"),
            ),
        ),
        Entry(
            "score-sde-cifar10-ve-deep",
            **CIFAR10,
            network="NCSN++ cont. deep",
            parameters=107_586_947,
            expected=(fid("2.20", "predictor-corrector, 2000 evaluations", "table 3", BEST),),
        ),
        Entry(
            "score-sde-cifar10-likelihood",
            **CIFAR10,
            network="DDPM++ cont.",
            parameters=61_804_419,
            expected=(bits("2.8", "about, with variational dequantization", recalled=True),),
            note="the settings are those of Song et al. (2021b), arXiv 2101.09258",
        ),
        Entry(
            "score-sde-celeba64-ve",
            **folder("CelebA", 64),
            network="NCSN++ cont.",
            parameters=62_758_787,
            note="the paper reports no FID for it",
        ),
        Entry(
            "score-sde-ffhq256-ve",
            **folder("FFHQ", 256),
            network="NCSN++",
            parameters=65_574_421,
            note="the paper reports no FID for it",
        ),
        digits(
            "score-sde",
            1_192_641,
            code("1.784 ± 0.015", "score-sde", "VP, exact up to uniform dequantization", "3,000 training steps"),
            frechet("1.21", "score-sde", "VP, predictor-corrector, 199 evaluations", "3,000 training steps"),
        ),
        mnist("score-sde", 6_946_881),
        smoke("score-sde", 12_265),
    ),
)
NCSN = Paper(
    "Noise-conditional score networks, NCSN and NCSNv2",
    "Song & Ermon",
    2019,
    ("1907.05600", "2006.09011"),
    (
        Entry(
            "ncsn-cifar10",
            **CIFAR10,
            network="U-Net in place of a RefineNet",
            parameters=38_307_203,
            expected=(
                fid("25.32", "without a last denoising", "2019, table 1"),
                inception_score("8.87", "without a last denoising", "2019, table 1", "0.12"),
            ),
        ),
        Entry(
            "ncsn-cifar10-v2",
            **CIFAR10,
            network="RefineNet of NCSNv2",
            parameters=29_694_083,
            expected=(
                fid("10.87", "with the last denoising", "2020, table 1"),
                inception_score("8.40", "with the last denoising", "2020, table 1", "0.07"),
                fid("31.75", "without the last denoising", "2020, table 1"),
                inception_score("8.73", "without the last denoising", "2020, table 1", "0.13"),
            ),
        ),
        Entry(
            "ncsn-celeba64-v2",
            **folder("CelebA", 64),
            network="RefineNet of NCSNv2",
            parameters=29_694_083,
            expected=(
                fid("10.23", "with the last denoising", "2020, table 1"),
                fid("28.86", "without the last denoising", "2020, table 1"),
            ),
        ),
        Entry(
            "ncsn-lsun128-v2",
            **folder("LSUN Tower", 128),
            network="RefineNet of NCSNv2, deeper",
            parameters=83_445_379,
            note="the paper reports no FID; the number of training steps is from memory",
        ),
        digits("ncsn", 1_192_641, frechet("2.43", "ncsn", "5 Langevin steps a level and a last denoising")),
        mnist("ncsn", 6_946_881),
        smoke("ncsn", 12_265),
    ),
)
EDM = Paper(
    "Elucidating the design space of diffusion-based generative models",
    "Karras et al.",
    2022,
    ("2206.00364",),
    (
        Entry(
            "edm-cifar10",
            **CIFAR10,
            network="DDPM++ of EDM",
            parameters=55_733_891,
            expected=(heun("1.97", 35),),
            hardware="8 GPUs; the hours are not known here",
        ),
        Entry(
            "edm-cifar10-classes",
            **CIFAR10,
            network="DDPM++ of EDM",
            parameters=55_735_299,
            expected=(heun("1.79", 35),),
            hardware="8 GPUs; the hours are not known here",
        ),
        Entry(
            "edm-ffhq64",
            **folder("FFHQ", 64),
            network="DDPM++ of EDM",
            parameters=61_805_571,
            expected=(heun("2.39", 79),),
            hardware="8 GPUs; the hours are not known here",
        ),
        Entry(
            "edm-afhqv2-64",
            **folder("AFHQv2", 64),
            network="DDPM++ of EDM",
            parameters=61_805_571,
            expected=(heun("1.96", 79),),
            hardware="8 GPUs; the hours are not known here",
        ),
        Entry(
            "edm-imagenet64",
            **folder("ImageNet", 64),
            network="ADM",
            parameters=295_899_267,
            expected=(fid("1.36", "Heun with churn, 511 evaluations", protocol=LEAST),),
            hardware="32 GPUs; the hours are not known here",
        ),
        digits("edm", 1_192_641, frechet("1.40", "edm", "Heun, rho 7, 35 evaluations")),
        mnist("edm", 6_946_881),
        smoke("edm", 12_265),
    ),
)
FLOW = Paper(
    "Flow matching for generative modeling, and rectified flow",
    "Lipman et al.",
    2023,
    ("2210.02747", "2209.03003"),
    (
        Entry(
            "flow-matching-cifar10",
            **CIFAR10,
            network="ADM",
            parameters=171_268_099,
            note="the settings are from memory, and the FID of table 3 is not quoted",
        ),
        digits("flow-matching", 1_192_641, frechet("1.23", "flow-matching", "midpoint rule, 35 evaluations")),
        mnist("flow-matching", 6_946_881),
        smoke("flow-matching", 12_265),
    ),
)
NO_FIGURE = "the papers' figures are of other networks and data"
INVERSE = Paper(
    "Inpainting, colorization and super-resolution with an unconditional model",
    "Song et al. and later",
    2021,
    ("2011.13456",),
    (
        Entry("inverse-problems-cifar10", **CIFAR10, network="U-Net of DDPM", parameters=35_746_307, note=NO_FIGURE),
        Entry(
            "inverse-problems-celeba64",
            **folder("CelebA", 64),
            network="U-Net of DDPM",
            parameters=78_700_803,
            note=NO_FIGURE,
        ),
        digits(
            "inverse-problems",
            1_192_387,
            Here("PSNR in dB", "19.9", "results/inverse-problems/table.md", "2026-11-21", "inpainting by DPS"),
            Here("PSNR in dB", "21.7", "results/inverse-problems/table.md", "2026-11-21", "super-resolution by DPS"),
            channels=3,
            data="tinted digits",
        ),
        mnist("inverse-problems", 6_949_187, channels=3, data="tinted MNIST"),
        smoke("inverse-problems", 12_203, channels=3),
    ),
)
BRIDGE = Paper(
    "Models sampled on the schedules of other families",
    "",
    0,
    (),
    (
        digits(
            "bridge",
            1_192_641,
            Here(
                "Fréchet distance",
                "1.83",
                "results/bridge/table.md",
                "2026-11-21",
                "rectified flow by Heun on its own path, 20 evaluations, 300 samples",
            ),
            Here(
                "Fréchet distance",
                "1.87",
                "results/bridge/table.md",
                "2026-11-21",
                "DDPM by Euler-Maruyama on VP, 100 evaluations, 300 samples",
            ),
            note="five models are trained; cost and time are those of one",
        ),
        mnist("bridge", 6_946_881),
        smoke("bridge", 12_265),
    ),
)
FAST_PAGE = "results/fast-digits.md"
FAST = Paper(
    "The best digits in four minutes of one thread",
    "",
    0,
    (),
    (
        replace(
            digits(
                "fast",
                299_937,
                Here("Fréchet distance", "1.34 ± 0.32", FAST_PAGE, "2026-11-28", "DDIM, 2,000 samples", seeds=3),
                Here("sure", "0.874 ± 0.012", FAST_PAGE, "2026-11-28", "DDIM, 2,000 samples", seeds=3),
                Here("sure", "0.911", FAST_PAGE, "2026-11-28", "DDIM(eta=1), 2,000 samples", seeds=2),
            ),
            time="four minutes on one core",
        ),
        smoke("fast", 11_913),
    ),
)
