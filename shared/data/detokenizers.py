"""Detokenizers: the rules that turn the tokenized text of common test corpora back into ordinary text.

Corpora such as the Penn Treebank come with spaces around punctuation and with replaced numbers, which a model of web
text has never seen: zero-shot perplexities depend on the rules. Those here are the rules of the published code of SEDD
(Lou et al. 2024) and MDLM (Sahoo et al. 2024), which follow Megatron-LM, in their order, with their side effects (in
WikiText, the rule for quotation marks also joins what stands between two apostrophes). One rule of that code, for an
apostrophe before a number, is written so that it applies to no ordinary text, and is left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath

from ..errors import UsageError

VERSION = 1  # version of the rules; a new number tokenizes detokenized text anew
Rule = tuple[str | re.Pattern[str], str]
"""What is replaced, a text or an expression, and by what."""


def replaced(text: str, rules: Sequence[Rule]) -> str:
    """Returns a text after all replacements, one after the other."""
    for before, after in rules:
        text = text.replace(before, after) if isinstance(before, str) else before.sub(after, text)
    return text


def before(marks: str) -> list[Rule]:
    """Returns rules that remove the space before each mark that stands between spaces, ` , ` becomes `, `."""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


def inside(opening: str, closing: str) -> Rule:
    """Returns the rule that removes white space at the inner sides of a pair of marks that have none of them inside."""
    open_, close = re.escape(opening), re.escape(closing)
    return re.compile(rf"{open_}\s*([^{close}]*?)\s*{close}"), rf"{opening}\1{closing}"


def between(opening: str, closing: str) -> Rule:
    """Returns the rule that removes one space at each inner side of a pair of marks, if both are there."""
    open_, close = re.escape(opening), re.escape(closing)
    others = re.escape("".join(dict.fromkeys(opening + closing)))
    return re.compile(rf"{open_} ([^{others}]+) {close}"), rf"{opening}\1{closing}"


WIKITEXT: tuple[Rule, ...] = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *before(":;.!?,"),
    inside("(", ")"),
    inside("[", "]"),
    inside("{", "}"),
    inside('"', '"'),
    inside("'", "'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
PTB: tuple[Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    *[(" N ", " 1 ")] * 10,  # a single replacement leaves every second of adjacent numbers
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)
LM1B: tuple[Rule, ...] = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    *before("?"),
    (re.compile(r" \?$"), "?"),
    *before("!"),
    (re.compile(r" !$"), "!"),
    *before(",:;"),
    (" / ", "/"),
    between('"', '"'),
    between("'", "'"),
    between("(", ")"),
    between("[", "]"),
    ("$ ", "$"),
    ("\N{POUND SIGN} ", "\N{POUND SIGN}"),
)
LAMBADA: tuple[Rule, ...] = (("\N{LEFT DOUBLE QUOTATION MARK}", '"'), ("\N{RIGHT DOUBLE QUOTATION MARK}", '"'))


def none(text: str) -> str:
    """Returns a text unchanged."""
    return text


def wikitext(text: str) -> str:
    """Returns text of WikiText-2 or WikiText-103 (raw) without spaces before punctuation and without ` @-@ `."""
    return replaced(text, WIKITEXT)


def ptb(text: str) -> str:
    """Returns text of the Penn Treebank with joined contractions, `1` for its numbers `N`, `?` for unknown words."""
    return replaced(text, PTB)


def lm1b(text: str) -> str:
    """Returns text of the One Billion Word benchmark without the spaces around punctuation and in addresses."""
    return replaced(text, LM1B)


def lambada(text: str) -> str:
    """Returns text of LAMBADA (as processed for GPT-2) with straight quotation marks, after a line break."""
    return "\n" + replaced(text, LAMBADA).strip()


def ag_news(text: str) -> str:
    """Returns text of AG News unchanged: the published code has no rules for it."""
    return text


def scientific_papers(text: str) -> str:
    """Returns articles of arXiv or PubMed: the rules of WikiText, and then those of LM1B."""
    return lm1b(wikitext(text))


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    f.__name__: f for f in (none, wikitext, ptb, lm1b, lambada, ag_news, scientific_papers)
}
"""The detokenizers by name."""
NAMES = {
    "wikitext": "wikitext",
    "wiki.": "wikitext",
    "ptb": "ptb",
    "penn": "ptb",
    "lm1b": "lm1b",
    "lambada": "lambada",
    "ag_news": "ag_news",
    "scientific_papers": "scientific_papers",
    "arxiv": "scientific_papers",
    "pubmed": "scientific_papers",
}
"""Parts of the names of corpora, each with its detokenizer."""


def detokenizer(name: str) -> Callable[[str], str]:
    """Returns the detokenizer of a name.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in DETOKENIZERS:
        near = difflib.get_close_matches(name, DETOKENIZERS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(DETOKENIZERS)}"
        raise UsageError(f"there is no detokenizer {name}: {remedy}")
    return DETOKENIZERS[name]


def of_corpus(name: str) -> tuple[str, str]:
    """Returns the corpus and the name of its detokenizer, for `NAME_OR_FILE` or `DETOKENIZER:NAME_OR_FILE`.

    Without a detokenizer it is the one that the corpus's name contains, as in `wikitext-2.parquet`, or `none`.
    """
    prefix, colon, rest = name.partition(":")
    if colon and len(prefix) > 1 and rest:
        detokenizer(prefix)
        return rest, prefix
    last = "/".join(PurePath(name).parts[-2:]).lower()
    return name, next((found for part, found in NAMES.items() if part in last), "none")
