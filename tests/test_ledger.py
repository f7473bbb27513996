"""The ledger is true: an entry a recipe, the figures of docstrings, parameters, costs and results; the command."""

import importlib
import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unnoise.experiments.caption_data import VOCABULARY
from unnoise.experiments.categorical import CategoricalRecipe
from unnoise.experiments.cli import main
from unnoise.experiments.cli.recipes import listing, markdown
from unnoise.experiments.image_data import Images
from unnoise.experiments.ledger import LEDGER, entry_of
from unnoise.experiments.ledger.entry import Cost, in_words
from unnoise.experiments.papers import ddpm
from unnoise.experiments.parts import write
from unnoise.experiments.recipes import PAPERS, RECIPES, find
from unnoise.experiments.text_data import Text

DOCS = Path(__file__).parent.parent / "docs"
ENTRIES = {entry.recipe: entry for paper in LEDGER.values() for entry in paper.entries}
PUBLISHED = [name for name, entry in ENTRIES.items() if entry.expected]
NUMBER = r"\d+\.\d+|\d+"


def test_every_recipe_has_one_entry_in_the_order_of_the_papers():
    assert set(ENTRIES) == set(RECIPES)
    assert sum(len(paper.entries) for paper in LEDGER.values()) == len(RECIPES)
    assert list(LEDGER) == list(PAPERS)
    for name, paper in LEDGER.items():
        assert all(f"unnoise.experiments.{PAPERS[name][0]}" == RECIPES[e.recipe].__module__ for e in paper.entries)
        assert {e.recipe for e in paper.entries} == {f"{name}-{f.replace('_', '-')}" for f in PAPERS[name][1].split()}
    with pytest.raises(KeyError):
        entry_of("another")


CITED_ELSEWHERE = {"upsampling", "inverse-problems"}
"""Papers whose module gives no number on arXiv."""


@pytest.mark.parametrize("name", LEDGER)
def test_papers_are_those_of_the_modules(name):
    module = importlib.import_module(f"unnoise.experiments.{PAPERS[name][0]}")
    paper, text = LEDGER[name], inspect.getdoc(module)
    cited = set(re.findall(r"\b\d{4}\.\d{4,5}\b", text))
    cited |= {n for f in PAPERS[name][1].split() for n in re.findall(r"\d{4}\.\d{5}", getattr(module, f).__doc__)}
    assert set(paper.arxiv) == cited or name in CITED_ELSEWHERE
    assert not paper.year or str(paper.year) in text
    for author in re.findall(r"[A-Z]\w{2,}", paper.authors):
        assert author in text, author


@pytest.mark.parametrize("name", PUBLISHED)
def test_expected_figures_are_those_of_the_docstring(name):
    """The ledger quotes no figure that the recipe does not quote, and leaves none out."""
    text = re.sub(r"arXiv \d+\.\d+|table \d|\d+ x \d+|MDLM", "", inspect.getdoc(RECIPES[name]))
    quoted, entry = set(map(float, re.findall(NUMBER, text))), ENTRIES[name]
    values = {float(figure.value) for figure in entry.expected}
    assert values <= quoted, values - quoted
    settings = {float(n) for figure in entry.expected for n in re.findall(NUMBER, f"{figure.at} {entry.note}")}
    decimals = set(map(float, re.findall(r"\d+\.\d+", text)))
    assert decimals <= values | settings, decimals - values - settings


def test_recipes_of_papers_without_figures_say_so():
    for name, entry in ENTRIES.items():
        own = entry.test or entry.network.endswith("of this package") or name.startswith(("bridge", "openmoji"))
        assert own or entry.expected or entry.note, name
        assert not (entry.test and (entry.expected or entry.here))
        if not entry.expected:
            assert not re.search(r"\b(?:FID|IS|[Pp]erplexity) \d", RECIPES[name].__doc__), name


def test_every_figure_has_a_protocol():
    for entry in ENTRIES.values():
        for figure in entry.expected:
            assert figure.protocol
            assert re.fullmatch(NUMBER, figure.value)
            assert float(figure.error or 1) > 0
            assert figure.bound == ("<= " in figure.text())


STATES = {"Absorbing": 1}
"""The states that a transition adds to the tokens."""


def caption_sizes(data):
    """The sizes of an encoder of captions, without the training of a tokenizer."""
    return (
        {}
        if data.caption_length is None
        else {"vocabulary": data.vocabulary or VOCABULARY, "length": data.caption_length}
    )


def parameters(entry, recipe):
    """The number of parameters of a recipe's network, built without memory for its weights."""
    own = (entry.shape,)
    if isinstance(recipe, CategoricalRecipe):
        states = entry.levels + STATES.get(recipe.transition.build.__name__, 0)
        own = (entry.shape, SimpleNamespace(categories=entry.levels, states=states))
    with torch.device("meta"):
        network = recipe.network_of(*own)
    return sum(p.numel() for p in network.parameters())


def test_parameters_are_those_of_the_networks(monkeypatch):
    monkeypatch.setattr(Images, "caption_sizes", caption_sizes)
    known, wrong = {}, {}
    for name, entry in ENTRIES.items():
        recipe = find(name)
        data = [getattr(recipe.data, key, None) for key in ("classes", "augment", "smaller", "caption_length")]
        parts = [getattr(recipe, key, None) for key in ("network", "variance", "head", "denoiser")]
        states = getattr(getattr(recipe, "transition", None), "name", "")
        key = str((entry.shape, entry.levels, data, [write(part) for part in parts], states))
        if key not in known:
            known[key] = parameters(entry, recipe)
        if known[key] != entry.parameters:
            wrong[name] = known[key]
    assert not wrong


def test_data_are_those_of_the_recipes():
    for name, entry in ENTRIES.items():
        data = find(name).data
        if isinstance(data, Text):
            assert entry.shape == (data.length,), name
            assert ("--data.tokenizer" in entry.options) == (data.tokenizer is not None), name
        else:
            assert data.size is None or entry.shape[1:] == data.size, name
            assert entry.data.endswith(" x ".join(map(str, entry.shape[1:]))), name
        bundled = data.name in ("digits", "mnist5k", "openmoji32", "shakespeare", "chain", "text8")
        assert ("--data.name" in entry.options) == (not bundled and "/" not in data.name), name


def test_costs_are_computed_from_the_recipe():
    entry, recipe = ENTRIES["ddpm-cifar10"], ddpm.cifar10()
    assert entry.cost(recipe) == Cost(800_000, 128)
    assert entry.cost(recipe).text() == "102 M images: 800,000 steps of 128 images"
    shorter = replace(recipe, training=replace(recipe.training, steps=1000), data=replace(recipe.data, batch=10))
    assert entry.cost(shorter).seen == 10_000
    assert ENTRIES["edm-cifar10"].cost(find("edm-cifar10")).seen == 200_000_000
    text = ENTRIES["mdlm-owt"].cost(find("mdlm-owt"))
    assert text.seen == 1_000_000 * 512 * 1024
    assert text.text() == "524 G tokens: 1,000,000 steps of 512 windows of 1024 tokens"
    assert [in_words(n) for n in (999, 96_000, 2_500_000_000)] == ["999", "96 k", "2.5 G"]


def test_results_stand_on_their_pages():
    """Each number is in a row of a table, or in the text, of the page that the entry names."""
    count = 0
    for entry in ENTRIES.values():
        for result in entry.here:
            text = (DOCS / result.page).read_text()
            assert re.search(rf"(?<![\d.]){re.escape(result.value)}(?!\d)", text), (entry.recipe, result.value)
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.date)
            assert result.seeds > 0
            count += 1
    assert count > 20


def test_the_page_is_up_to_date():
    assert (DOCS / "recipes.md").read_text() == markdown(), "write it again with make recipes"


def test_the_list_fits_100_columns(capsys):
    lines = listing(LEDGER.values())
    assert max(map(len, lines)) <= 100
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ {re.escape(name)} ", out, re.M) for name in RECIPES)
    row = next(line for line in lines if line.startswith(" ddpm-cifar10 "))
    assert " ".join(row.split()) == "ddpm-cifar10 CIFAR-10 32 x 32 FID 3.17 not yet"
    assert main(["recipes", "ddpm"]) == 0
    out = capsys.readouterr().out
    assert "ddpm-digits" in out
    assert "edm-digits" not in out


def test_listing_builds_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network is built")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    monkeypatch.setattr(torch.nn.Linear, "__init__", refuse)
    assert listing(LEDGER.values())
    assert main(["recipes", "edm-cifar10"]) == 0


def test_one_recipe_in_full(capsys):
    assert main(["recipes", "ddpm-cifar10"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020), arXiv 2006.11239",
        "3 x 32 x 32, 256 quantization levels",
        "35,746,307 parameters",
        "FID 3.17: 1000 steps; 50,000 samples against the training set; table 1",
        "IS 9.46 ± 0.11: 1000 steps; 50,000 samples; table 1",
        "<= 3.75 bits/dim: the held-out test set; table 1",
        "102 M images: 800,000 steps of 128 images",
        "run here    not yet",
        "schedule = LinearBetas()",
        "unnoise train ddpm-cifar10\n",
        "unnoise sample runs/ddpm-cifar10\n",
        "unnoise evaluate runs/ddpm-cifar10\n",
        "unnoise reproduce ddpm-cifar10\n",
    ):
        assert words in out, words
    assert max(map(len, out.splitlines())) <= 120
    assert main(["recipes", "mdlm-owt"]) == 0
    out = capsys.readouterr().out
    assert "unnoise train mdlm-owt --data.tokenizer tokenizer.json" in out
    assert "unnoise reproduce" not in out
    assert main(["recipes", "ddpm-digits"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2.050 bits/dim: upper bound, 256 held-out images; as the recipe; 1 seed; 2026-11-21; docs/results/" in out


def test_a_recipe_of_ones_own_has_no_entry(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from unnoise.experiments.recipes import find\n\ndef small():\n    return find('ddpm-smoke')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "mine.py:small"]) == 0
    out = capsys.readouterr().out
    for words in ("which the ledger does not have", "unnoise train mine.py:small", "UNet(width=8"):
        assert words in out


def test_bad_names_and_files(tmp_path, capsys):
    for words, message in (
        (["ddpm-cifar01"], "there is no recipe ddpm-cifar01: did you mean ddpm-cifar10?"),
        (["qqqq"], "there is no recipe qqqq: `unnoise recipes` lists them"),
        (["ddpm-digits", "--markdown", str(tmp_path / "page.md")], "leave out ddpm-digits"),
        (["--markdown", str(tmp_path / "page.txt")], f"--markdown {tmp_path / 'page.txt'}: give a name"),
    ):
        assert main(["recipes", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["recipes", "--markdown", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == markdown()
