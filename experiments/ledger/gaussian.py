"""The ledger of Gaussian diffusion in discrete time: Ho et al. (2020) and what followed."""

from __future__ import annotations

from .entry import CIFAR10, Entry, Here, Paper, bits, digits, fid, folder, inception_score, mnist, smoke

ADM_FID = "50,000 samples against the reference batch of the authors"
DAY = "2026-11-21"


def frechet(value: str, page: str, at: str = "", scale: str = "") -> Here:
    """Returns a Fréchet distance on the features of the classifier of digits, of 500 samples."""
    return Here("Fréchet distance", value, f"results/{page}/table.md", DAY, f"{at}, 500 samples".lstrip(", "), scale)


def code(value: str, page: str, at: str = "", scale: str = "") -> Here:
    """Returns a code length of held-out digits."""
    return Here("bits/dim", value, f"results/{page}/table.md", DAY, at, scale)


DDPM = Paper(
    "Denoising diffusion probabilistic models",
    "Ho, Jain, Abbeel",
    2020,
    ("2006.11239",),
    (
        Entry(
            "ddpm-cifar10",
            **CIFAR10,
            network="U-Net of DDPM",
            parameters=35_746_307,
            expected=(
                fid("3.17", "1000 steps", "table 1"),
                bits("3.75", source="table 1"),
                inception_score("9.46", "1000 steps", "table 1", "0.11"),
            ),
        ),
        Entry(
            "ddpm-celebahq256",
            **folder("CelebA-HQ", 256),
            network="U-Net of DDPM",
            parameters=113_673_219,
            note="the paper shows samples and reports no FID",
        ),
        Entry(
            "ddpm-lsun256",
            **folder("LSUN Church", 256),
            network="U-Net of DDPM",
            parameters=113_673_219,
            expected=(
                fid("7.89", "Church", "table 3"),
                fid("19.75", "Cat, 1.8M training steps", "table 3"),
                fid("6.36", "Bedroom, 2.4M training steps without flips", "table 3"),
            ),
        ),
        digits("ddpm", 1_192_641, code("2.050", "ddpm", "upper bound, 256 held-out images")),
        mnist("ddpm", 6_946_881),
        smoke("ddpm", 12_265),
    ),
)
IMPROVED = Paper(
    "Improved denoising diffusion probabilistic models",
    "Nichol & Dhariwal",
    2021,
    ("2102.09672",),
    (
        Entry(
            "improved-ddpm-cifar10",
            **CIFAR10,
            network="U-Net of Improved DDPM",
            parameters=52_546_438,
            expected=(
                fid("3.19", "hybrid loss, 4000 steps", recalled=True),
                bits("3.17", "hybrid loss, 4000 steps", recalled=True),
                fid("11.47", "vlb loss, 4000 steps"),
                bits("2.94", "vlb loss, 4000 steps"),
            ),
        ),
        Entry(
            "improved-ddpm-imagenet64",
            **folder("ImageNet", 64),
            network="U-Net of Improved DDPM",
            parameters=121_063_942,
            expected=(
                fid("19.2", "hybrid loss, 1.5M training steps"),
                bits("3.57", "hybrid loss, 1.5M training steps", recalled=True),
                fid("40.1", "vlb loss, 1.5M training steps", recalled=True),
                bits("3.53", "vlb loss, 1.5M training steps"),
            ),
        ),
        Entry(
            "improved-ddpm-imagenet64-classes",
            **folder("ImageNet", 64),
            network="U-Net of Improved DDPM, 192 channels",
            parameters=273_049_350,
            expected=(fid("2.92", "250 steps"),),
        ),
        Entry(
            "improved-ddpm-lsun256",
            **folder("LSUN Bedroom", 256),
            network="U-Net of Improved DDPM",
            parameters=113_676_678,
            note="the recipe quotes no figure of the paper",
        ),
        digits(
            "improved-ddpm",
            1_192_930,
            code("1.947 ± 0.016", "improved-ddpm", "hybrid loss, upper bound"),
            frechet("1.23", "improved-ddpm", "hybrid loss, 100 ancestral steps"),
        ),
        mnist("improved-ddpm", 6_947_458),
        smoke("improved-ddpm", 12_338),
    ),
)


def by_steps(steps: tuple[int, ...], values: tuple[str, ...], source: str = "", of: str = "") -> tuple:
    """Returns the FIDs of DDIM by the number of its steps; that of the most steps is the headline."""
    figures = [fid(value, f"{of}DDIM, {n} steps", source) for n, value in zip(steps, values, strict=True)]
    return (figures[-1], *figures[:-1])


DDIM = Paper(
    "Denoising diffusion implicit models",
    "Song, Meng, Ermon",
    2020,
    ("2010.02502",),
    (
        Entry(
            "ddim-cifar10",
            **CIFAR10,
            network="U-Net of DDPM",
            parameters=35_746_307,
            expected=by_steps((10, 20, 50, 100, 1000), ("13.36", "6.84", "4.67", "4.16", "4.04"), "table 1"),
        ),
        Entry(
            "ddim-celeba64",
            **folder("CelebA", 64),
            network="U-Net of DDPM",
            parameters=78_700_803,
            expected=by_steps((10, 20, 50, 100, 1000), ("17.33", "13.73", "9.17", "6.53", "3.51"), "table 1"),
        ),
        Entry(
            "ddim-lsun256",
            **folder("LSUN", 256),
            network="U-Net of DDPM",
            parameters=113_673_219,
            expected=(
                *by_steps((10, 20, 50, 100), ("16.95", "8.89", "6.75", "6.62"), of="Bedroom, "),
                *by_steps((10, 20, 50, 100), ("19.45", "12.47", "10.84", "10.58"), of="Church, "),
            ),
        ),
        digits("ddim", 1_192_641, frechet("1.70", "ddim", "DDIM, 50 steps"), frechet("3.07", "ddim", "DDIM, 10 steps")),
        mnist("ddim", 6_946_881),
        smoke("ddim", 12_265),
    ),
)
GUIDED = Paper(
    "Diffusion models beat GANs on image synthesis",
    "Dhariwal & Nichol",
    2021,
    ("2105.05233",),
    (
        Entry(
            "guided-diffusion-imagenet64",
            **folder("ImageNet", 64),
            network="ADM",
            parameters=295_904_454,
            expected=(
                fid("2.07", "with dropout, unguided", "table 5", ADM_FID),
                fid("2.61", "without dropout, unguided", "table 5", ADM_FID),
            ),
        ),
        Entry(
            "guided-diffusion-imagenet128",
            **folder("ImageNet", 128),
            network="ADM",
            parameters=421_529_606,
            expected=(
                fid("5.91", "unguided", "table 5", ADM_FID),
                fid("2.97", "guidance scale 0.5", "table 5", ADM_FID),
                fid("5.98", "25 DDIM steps, guidance scale 1.25", "table 5", ADM_FID),
            ),
            note="the cost is that of the model, without its classifier",
        ),
        Entry(
            "guided-diffusion-imagenet256",
            **folder("ImageNet", 256),
            network="ADM",
            parameters=553_838_086,
            expected=(
                fid("10.94", "unguided", "table 4", ADM_FID),
                fid("4.59", "guidance scale 1", "table 4", ADM_FID),
                fid("9.11", "guidance scale 10", "table 4", ADM_FID),
                fid("5.44", "25 DDIM steps, guidance scale 2.5", protocol=ADM_FID),
            ),
            note="the cost is that of the model, without its classifier",
        ),
        Entry(
            "guided-diffusion-lsun256",
            **folder("LSUN Bedroom", 256),
            network="ADM",
            parameters=552_814_086,
            expected=(
                fid("1.90", "with dropout, 1000 steps", "table 5", ADM_FID),
                fid("2.02", "250 steps in sections 90,60,60,20,20", protocol=ADM_FID),
            ),
        ),
        digits(
            "guided-diffusion",
            1_191_522,
            frechet("1.97", "guided-diffusion", "guidance scale 2, 100 ancestral steps"),
            Here(
                "agreement with the label",
                "0.894",
                "results/guided-diffusion/table.md",
                DAY,
                "guidance scale 2, 100 ancestral steps, 500 samples",
            ),
        ),
        mnist("guided-diffusion", 6_947_458),
        smoke("guided-diffusion", 11_986),
    ),
)
CLASSIFIER_FREE = Paper(
    "Classifier-free diffusion guidance",
    "Ho & Salimans",
    2022,
    ("2207.12598",),
    (
        Entry(
            "classifier-free-imagenet64",
            **folder("ImageNet", 64),
            network="ADM",
            parameters=295_900_035,
            expected=(
                fid("1.55", "w = 0.1, 256 steps", "table 1"),
                inception_score("260.2", "w = 4, 256 steps", "table 1"),
            ),
        ),
        Entry(
            "classifier-free-imagenet128",
            **folder("ImageNet", 128),
            network="ADM",
            parameters=421_523_715,
            expected=(
                fid("2.43", "w = 0.3, 256 steps", "table 2"),
                inception_score("421", "w = 4, 256 steps", "table 2"),
            ),
        ),
        digits(
            "classifier-free",
            1_192_641,
            frechet("1.59", "classifier-free", "w = 0, 64 steps"),
            frechet("2.33", "classifier-free", "w = 0.5, 64 steps"),
        ),
        mnist("classifier-free", 6_949_697),
        smoke("classifier-free", 12_265),
    ),
)
DISTILLATION = Paper(
    "Progressive distillation for fast sampling",
    "Salimans & Ho",
    2022,
    ("2202.00512",),
    (
        Entry(
            "progressive-distillation-cifar10",
            **CIFAR10,
            network="U-Net of this package, 256 channels",
            parameters=55_540_483,
            expected=(
                fid("2.57", "student of 8 steps"),
                fid("9.12", "student of 1 step"),
                fid("3.00", "student of 4 steps"),
                fid("4.51", "student of 2 steps"),
                fid("2.75", "teacher, velocity, truncated SNR, DDIM", "table 1"),
                fid("2.51", "teacher of the paper, which predicts the image, DDIM", "table 1"),
            ),
            note="the students of the paper have a teacher that predicts the image; the cost is that of the teacher",
        ),
        Entry(
            "progressive-distillation-imagenet64",
            **folder("ImageNet", 64),
            network="U-Net of this package, 192 channels",
            parameters=277_189_059,
            note="the paper shows figure 4, and the recipe quotes no number; the cost is that of the teacher",
        ),
        digits(
            "progressive-distillation",
            1_192_641,
            frechet("1.53", "progressive-distillation", "student of 4 steps"),
            frechet("1.20", "progressive-distillation", "teacher, 64 DDIM steps"),
            frechet("2.27", "progressive-distillation", "student of 1 step"),
        ),
        mnist("progressive-distillation", 6_946_881),
        smoke("progressive-distillation", 12_265),
    ),
)
UPSAMPLING = Paper(
    "Super-resolution, one stage of a cascade",
    "Nichol & Dhariwal; Dhariwal & Nichol",
    2021,
    ("2102.09672", "2105.05233"),
    (
        Entry(
            "upsampling-imagenet256",
            **folder("ImageNet", 256),
            network="ADM, upsampler",
            parameters=311_027_910,
            expected=(fid("3.94", "after a guided model of 64 x 64", "table 5", ADM_FID),),
            note="the published model also has class labels",
        ),
        digits(
            "upsampling",
            1_191_810,
            Here("PSNR in dB", "18.9", "results/upsampling/table.md", DAY, "held-out images from 4 x 4, 100 steps"),
            Here("agreement with the label", "0.966", "results/upsampling/table.md", DAY, "held-out images from 4 x 4"),
        ),
        mnist("upsampling", 6_948_034),
        smoke("upsampling", 12_058),
    ),
)
OPENMOJI = Paper(
    "Text-to-image models with the attention and guidance of GLIDE",
    "Nichol et al.",
    2021,
    ("2112.10741",),
    (
        Entry(
            "openmoji-captions",
            "OpenMoji 32 x 32",
            (3, 32, 32),
            256,
            "U-Net with a caption encoder",
            3_097_923,
            time="one to two hours on two cores",
            note="no paper has figures on these images",
        ),
        Entry(
            "openmoji-groups",
            "OpenMoji 32 x 32",
            (3, 32, 32),
            256,
            "U-Net",
            2_857_347,
            time="one to two hours on two cores",
            note="no paper has figures on these images",
        ),
        Entry(
            "openmoji-smoke",
            "OpenMoji 32 x 32",
            (3, 32, 32),
            256,
            "U-Net with a caption encoder",
            16_027,
            time="a few seconds",
            test=True,
        ),
    ),
)
