"""The ledger of categorical diffusion: D3PM and what followed, on images and text."""

from __future__ import annotations

from .entry import CIFAR10, SAMPLES_50K, Entry, Expected, Here, Paper, bits, digits, fid, inception_score, mnist, smoke
from .gaussian import code, frechet

FIVE = "50,000 samples against the training set, 5 seeds"
CHAIN = "results/d3pm-text-chain/table.md"
SHAKESPEARE = "results/d3pm-text-shakespeare/table.md"
TEXT8 = {"data": "text8, length 256", "shape": (256,), "levels": 27}
TOKENIZER = "--data.tokenizer tokenizer.json"


def text8(value: str, at: str = "", **more) -> Expected:
    """Returns a published code length of text8."""
    return bits(value, at, unit="bits/char", **more)


def perplexity(value: str, unit: str, at: str = "", error: str = "", source: str = "") -> Expected:
    """Returns a published upper bound on the perplexity of held-out text."""
    return Expected(f"perplexity per {unit}", value, "held-out text", at, source, error, bound=True)


def markov_chain(paper: str, parameters: int, *here: Here) -> Entry:
    """Returns the entry of a recipe for text of 64 tokens of the Markov chain."""
    return Entry(
        f"{paper}-chain",
        "Markov chain, length 64",
        (64,),
        27,
        "transformer of this package",
        parameters,
        time="about four minutes on one core",
        here=here,
        note="the entropy of the chain, 1.797 bits/char, is the least value",
    )


def shakespeare(paper: str, parameters: int, *here: Here) -> Entry:
    """Returns the entry of a recipe for windows of 128 characters of Shakespeare."""
    return Entry(
        f"{paper}-shakespeare",
        "Shakespeare, length 128",
        (128,),
        27,
        "transformer of this package",
        parameters,
        time="some minutes on two cores",
        here=here,
    )


def text_smoke(paper: str, parameters: int) -> Entry:
    """Returns the entry of the smallest recipe of a paper on text."""
    data, network = "Shakespeare, length 16", "transformer of this package"
    return Entry(f"{paper}-smoke", data, (16,), 27, network, parameters, time="a few seconds", test=True)


def compared(value: str, page: str, steps: int) -> Here:
    """Returns a code length of the comparison of models of text, which are trained for equal time."""
    date = "2026-11-27" if page == CHAIN else "2026-11-21"
    return Here("bits/char", value, page, date, "upper bound", f"{steps:,} training steps, of equal time")


D3PM = Paper(
    "Structured denoising diffusion in discrete state spaces, images",
    "Austin et al.",
    2021,
    ("2107.03006",),
    (
        Entry(
            "d3pm-cifar10",
            **CIFAR10,
            network="U-Net of DDPM on categories",
            parameters=36_631_046,
            expected=(
                fid("7.34", "Gaussian + logistic", "table 3", FIVE, error="0.19"),
                bits("3.435", "Gaussian + logistic", "table 3", error="0.007"),
                fid("8.34", "Gaussian, residual head", "table 3", FIVE, error="0.10"),
                bits("3.975", "Gaussian, residual head", "table 3", error="0.006"),
                fid("30.97", "absorbing", "table 3", FIVE, error="0.64"),
                bits("4.40", "absorbing", "table 3", error="0.02"),
                fid("51.27", "uniform", "table 3", FIVE, error="2.15"),
                bits("5.08", "uniform", "table 3", error="0.02"),
            ),
        ),
        digits(
            "d3pm",
            1_201_873,
            code("1.879 ± 0.017", "d3pm", "Gaussian, upper bound"),
            frechet("1.68", "d3pm", "Gaussian, 100 steps"),
        ),
        mnist("d3pm", 7_240_896),
        smoke("d3pm", 14_585),
    ),
)
D3PM_TEXT = Paper(
    "Structured denoising diffusion in discrete state spaces, text",
    "Austin et al.",
    2021,
    ("2107.03006",),
    (
        Entry(
            "d3pm-text-text8",
            **TEXT8,
            network="transformer of 12 layers",
            parameters=85_784_448,
            expected=(
                text8("1.45", "absorbing, lambda 0.01, 1000 steps", error="0.02"),
                text8("1.47", "absorbing, lambda 0.01, 256 steps", error="0.03"),
                text8("1.56", "absorbing, lambda 0.01, 20 steps", error="0.04"),
                text8("1.61", "uniform, 1000 steps", error="0.02"),
                text8("1.59", "nearest neighbors, 1000 steps", error="0.03"),
            ),
            note="the paper states 70 M parameters",
        ),
        Entry(
            "d3pm-text-lm1b",
            "LM1B, 8,192 tokens, length 128",
            (128,),
            8192,
            "transformer of 12 layers",
            98_325_888,
            (
                perplexity("76.9", "word", "absorbing, 1000 steps", "2.3"),
                perplexity("137.9", "word", "uniform, 1000 steps", "2.1"),
            ),
            options=f"--data.name FOLDER {TOKENIZER}",
        ),
        markov_chain("d3pm-text", 371_840, compared("1.805 ± 0.008", CHAIN, 2239)),
        shakespeare("d3pm-text", 844_160, compared("2.698 ± 0.013", SHAKESPEARE, 2087)),
        text_smoke("d3pm-text", 8_448),
    ),
)
MULTINOMIAL = Paper(
    "Argmax flows and multinomial diffusion",
    "Hoogeboom et al.",
    2021,
    ("2102.05379",),
    (
        Entry(
            "multinomial-text8",
            **TEXT8,
            network="transformer of 12 layers",
            parameters=38_183_936,
            expected=(text8("1.72"),),
            note="in the paper 8 of the 16 heads attend to 128 neighbors only",
        ),
        shakespeare("multinomial", 844_032),
        text_smoke("multinomial", 8_432),
    ),
)
MDLM = Paper(
    "Simple and effective masked diffusion language models",
    "Sahoo et al.",
    2024,
    ("2406.07524",),
    (
        Entry(
            "mdlm-text8",
            **TEXT8,
            network="DiT of 12 layers",
            parameters=92_422_939,
            expected=(text8("1.40", "about", recalled=True),),
        ),
        Entry(
            "mdlm-lm1b",
            "LM1B, bert-base-uncased tokens, padded to 128",
            (128,),
            30522,
            "DiT of 12 layers",
            139_293_754,
            (perplexity("27.04", "token", "33B tokens"),),
            options=f"--data.name FOLDER {TOKENIZER}",
        ),
        Entry(
            "mdlm-owt",
            "OpenWebText, GPT-2 tokens, length 1024",
            (1024,),
            50257,
            "DiT of 12 layers",
            169_626_449,
            (perplexity("23.21", "token", "262B tokens"),),
            options=TOKENIZER,
        ),
        shakespeare("mdlm", 1_275_931, compared("2.870 ± 0.013", SHAKESPEARE, 1898)),
        text_smoke("mdlm", 70_027),
    ),
)
SEDD = Paper(
    "Discrete diffusion modeling by estimating the ratios of the data distribution",
    "Lou et al.",
    2024,
    ("2310.16834",),
    (
        Entry(
            "sedd-text8",
            **TEXT8,
            network="DiT of 12 layers",
            parameters=92_422_939,
            expected=(text8("1.39", "absorbing"), text8("1.47", "uniform")),
        ),
        Entry(
            "sedd-owt",
            "OpenWebText, GPT-2 tokens, length 1024",
            (1024,),
            50257,
            "DiT of 12 layers",
            169_626_449,
            (perplexity("24.10", "token", "262B tokens", source="the table of MDLM, arXiv 2406.07524"),),
            options=TOKENIZER,
        ),
        shakespeare("sedd", 1_275_931, compared("2.918 ± 0.012", SHAKESPEARE, 1977)),
        text_smoke("sedd", 70_027),
    ),
)
UDLM = Paper(
    "Uniform-noise diffusion language models",
    "Schiff et al.",
    2024,
    ("2412.10193",),
    (
        Entry(
            "udlm-text8",
            **TEXT8,
            network="DiT of 12 layers",
            parameters=92_422_171,
            note="the recipe quotes no figure of the paper",
        ),
        markov_chain("udlm", 371_744, compared("1.934 ± 0.008", CHAIN, 1973)),
        shakespeare("udlm", 1_275_803),
        text_smoke("udlm", 70_011),
    ),
)
TAULDR = Paper(
    "A continuous time framework for discrete denoising models",
    "Campbell et al.",
    2022,
    ("2205.14987",),
    (
        Entry(
            "tauldr-cifar10",
            **CIFAR10,
            network="U-Net of DDPM on categories",
            parameters=36_631_046,
            expected=(
                fid("8.10", "500 steps of tau-leaping", protocol=f"{SAMPLES_50K}, by a FID package of PyTorch"),
                bits("3.59", "500 steps"),
                inception_score("8.74", "500 steps of tau-leaping"),
                fid(
                    "3.74",
                    "10 corrector steps after each step below t = 0.1",
                    protocol=f"{SAMPLES_50K}, by a FID package of PyTorch",
                ),
                inception_score("9.49", "10 corrector steps after each step below t = 0.1"),
            ),
        ),
        digits("tauldr", 1_197_538),
        smoke("tauldr", 13_490),
    ),
)
