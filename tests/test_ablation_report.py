"""The report of an ablation: what it compares, its files, and that the page needs nothing else."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest

from unnoise.experiments import report as pages
from unnoise.experiments.ablation.comparisons import cells, effects, most_complete
from unnoise.experiments.ablation.figures import limits, thinned
from unnoise.experiments.ablation.report import decimals, markdown, percent, remarks, status, write
from unnoise.experiments.ablation.results import Results, Run
from unnoise.experiments.ablation.statistics import compare, summary
from unnoise.shared.metrics import measurement
from unnoise.shared.metrics.measurement import Evaluation, Origin, Protocol

FACTORS = {"schedule": ["linear", "cosine(s=0.02)", "$x|y_<b>"], "predicts": ["noise", "velocity"]}
PROTOCOL = Protocol("inception", "ab12cd34", "bilinear to 299", "digits, train", "00ff11", 5000, "k=3")


def measured(levels, seed, fid, protocol=PROTOCOL, **more):
    """Returns a run with an FID, code length and a share, whose difference to 0.5 counts."""
    origin = Origin("Ancestral()", 100, 100, "Decay(0.99)", "float32", seed, "0.2.0")
    found = [
        measurement.Measurement("fid", fid, protocol, origin, better="lower", note="biased"),
        measurement.Measurement("bits", fid / 10, Protocol(settings="bound"), origin, 0.01, "bits/dim", "higher"),
        measurement.Measurement("sure", 0.5 + (-1) ** seed * fid / 100, PROTOCOL, better="closer", held_out=0.5),
    ]
    losses = [1.0 / step for step in range(1, 251)]
    curve = ([float(step) for step in range(1, 251)], [loss + fid for loss in losses])
    return Run(levels, seed, Evaluation({"images": 360} | more, found), "", curve, 12.5)


def value(levels, seed):
    """Returns an FID: cosine lowers it by 2, velocity raises it by 1, and seeds add some noise."""
    noise = np.random.default_rng([seed, *map(ord, levels["schedule"] + levels["predicts"])]).normal() * 0.05
    return 10 - 2 * levels["schedule"].startswith("cosine") + (levels["predicts"] == "velocity") + seed / 2 + noise


def grid(seeds=3):
    return [
        dict(zip(FACTORS, levels, strict=True)) | {"seed": s} for *levels, s in product(*FACTORS.values(), range(seeds))
    ]


def results(**changes):
    """Returns an ablation of six cells with three seeds; one run failed, and one is missing."""
    runs = []
    for n, case in enumerate(grid()):
        seed = case.pop("seed")
        if n == 13:
            runs.append(Run(case, seed, None, "ValueError: a|b is <bad>"))
        elif n == 17:
            runs.append(Run(case, seed, None))
        else:
            runs.append(measured(case, seed, value(case, seed)))
    made = Results("Schedules & predictions", "Varies **two** parts.", FACTORS, ["fid", "bits", "sure"], runs, 1)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(results(), tmp_path_factory.mktemp("report") / "new")


def test_cells_are_compared_with_the_baseline_by_seed():
    found = cells(results(), "fid")
    assert [tuple(c.levels.values()) for c in found] == list(product(*FACTORS.values()))
    base, cosine = found[0], found[2]
    assert base.comparison is None
    own = [value(cosine.levels, seed) for seed in range(3)]
    assert cosine.summary == summary(own)
    assert cosine.comparison.difference == pytest.approx(np.mean(own) - base.summary.mean)
    assert cosine.comparison.level == pytest.approx(0.99)
    assert cosine.comparison.degrees == 2  # moderated
    assert cosine.comparison.word == "better"
    assert found[1].comparison.word == "worse"
    assert [c.comparison.pairs for c in found[1:]] == [3, 3, 3, 2, 2]
    assert found[2].comparison.better == "lower"
    assert cells(results(), "bits")[2].comparison.word == "worse"  # higher is better


def test_closer_is_the_distance_to_real_data():
    """The share alternates around 0.5, so that the mean of the shares is not at the mean distance."""
    cosine = cells(results(), "sure")[2]
    assert cosine.summary.mean == pytest.approx(0.5, abs=0.05)
    own, base = ([value(c.levels, s) / 100 for s in range(3)] for c in (cosine, cells(results(), "sure")[0]))
    assert cosine.comparison.difference == pytest.approx(np.mean(own) - np.mean(base))
    assert cosine.comparison.word == "better"


def test_effects_are_averages_over_the_other_factors():
    found = effects(results(), "fid")
    assert [(e.factor, e.level) for e in found] == [(f, n) for f, names in FACTORS.items() for n in names[1:]]
    cosine, strange, velocity = found
    assert (cosine.used, cosine.combinations, cosine.comparison.pairs) == (2, 2, 3)
    pairs = [
        ({"schedule": "cosine(s=0.02)", "predicts": p}, {"schedule": "linear", "predicts": p})
        for p in FACTORS["predicts"]
    ]
    means = [np.mean([value(a, s) - value(b, s) for a, b in pairs]) for s in range(3)]
    expected = compare(means, [0.0] * 3, 0.95, 3, "lower")
    assert (cosine.comparison.low, cosine.comparison.high) == pytest.approx((expected.low, expected.high))
    assert (cosine.comparison.word, velocity.comparison.word) == ("better", "worse")
    assert (velocity.used, velocity.combinations) == (2, 3)  # that with the failed run is left out
    assert strange.comparison.pairs * strange.used == 2
    assert effects(results(factors={"schedule": FACTORS["schedule"]}), "fid") == []


def test_effects_have_more_power_than_cells():
    cell, effect = cells(results(), "fid")[2].comparison, effects(results(), "fid")[0].comparison
    assert effect.deviation < cell.deviation


def test_gaps_are_left_out():
    rows = [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 4.0, 1: 5.0, 2: 6.0}, {0: 7.0, 1: 8.0}, {2: 9.0}]
    assert most_complete(rows) == (rows[:2], [0, 1, 2])
    assert most_complete(rows, 3) == (rows[:3], [0, 1])
    assert most_complete([{0: 1.0}, {1: 1.0}]) == ([{0: 1.0}], [0])
    assert most_complete([{}, {}]) == ([], [])


def test_different_protocols_are_not_compared():
    made = results()
    runs = [
        measured(r.levels, r.seed, 3.0, replace(PROTOCOL, resize="bicubic")) if r.levels["schedule"][0] == "c" else r
        for r in made.runs
    ]
    cell = cells(replace(made, runs=runs), "fid")[2]
    assert cell.comparison is None
    assert cell.remark == "not comparable: resize: bicubic and bilinear to 299"
    assert effects(replace(made, runs=runs), "fid")[0].used == 0
    assert "– not comparable: resize: bicubic" in markdown(replace(made, runs=runs), {"fid": [cell]}, {})


def test_cells_without_numbers():
    made = results()
    runs = [Run(r.levels, r.seed, None, "" if r.seed else "MemoryError") for r in made.runs]
    assert {c.remark for c in cells(replace(made, runs=runs), "fid")[1:]} == {"failed"}
    assert {c.remark for c in cells(made, "recall")[1:4]} == {"not measured"}
    others = [r for r in made.runs if r.levels != made.baseline]
    assert cells(replace(made, runs=others), "fid")[0].remark == "no baseline"
    apart = [replace(r, seed=9) if r.levels == made.baseline else r for r in made.runs]
    assert cells(replace(made, runs=apart), "fid")[1].remark == "no seed in common with the baseline"


def test_closer_to_nothing_has_no_verdict():
    runs = [
        Run({"a": n}, s, Evaluation({}, [measurement.Measurement("sure", 0.5, better="closer")]))
        for n in "xy"
        for s in range(3)
    ]
    assert cells(Results("A", "", {"a": ["x", "y"]}, ["sure"], runs), "sure")[1].remark == (
        "no number of real data to be close to"
    )


def test_remarks_are_one_for_all_runs_and_name_the_cells_of_which_alone_they_are_true():
    def run(level, seed, note):
        return Run({"a": level}, seed, Evaluation({}, [measurement.Measurement("kid", 1.0, note=note)]))

    runs = [
        run("x", 0, "upper bound, Bound(terms=4); deviation over subsets 2.8; real data: 1,500 images"),
        run("x", 1, "upper bound, Bound(terms=4); deviation over subsets 10.5; real data: 1,500 images"),
        run("y", 0, "exact; deviation over subsets 1e-05; real data: 1,500 images"),
        *(run(level, 0, "real data: 1,500 images; {odd}") for level in ("z", "v", "w", "u")),
    ]
    found = remarks(Results("A", "", {"a": ["x", "y", "z", "v", "w", "u"]}, ["kid"], runs), "kid")
    assert found == [
        "upper bound, Bound(terms=4) (x)",
        "deviation over subsets 1e-05 to 10.5 (x; y)",
        "real data: 1,500 images",
        "exact (y)",
        "(odd) (z; v; w and 1 other cell)",
    ]


def test_first_line_counts_the_runs():
    assert status(results()).startswith(
        "**Partial: 1 of 18 runs is missing.** 6 cells, 3 seeds (0, 1, 2): 16 of 18 runs "
    )
    assert status(results(missing=0)).startswith("6 cells, ")
    assert "1 failed, 0 missing" in status(results(missing=0))


def test_markdown(written):
    text = written.markdown.read_text()
    lines = text.splitlines()
    assert lines[0] == "# Schedules &amp; predictions"
    assert lines[2].startswith("**Partial: 1 of 18")
    order = [
        "Varies **two**",
        "## Main effects",
        "## Cells",
        "## Failures and numbers that are missing",
        "## Training",
        "## All runs",
        "## How the",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    row = next(line for line in lines[text[: text.index("## Cells")].count("\n") :] if "cosine(s=0.02) | noise" in line)
    cosine = cells(results(), "fid")[2]
    c, mean = cosine.comparison, cosine.summary
    assert row == (
        f"| cosine(s=0.02) | noise | {mean.mean:.2f} ± {mean.deviation:.2f} | ✓ better | {c.difference:+.2f} | "
        f"{c.low:+.2f} to {c.high:+.2f} | {mean.low:.2f} to {mean.high:.2f} | 3 |"
    )
    assert "| linear | noise | 10." in text
    assert "| baseline |" in text
    assert r"| $x\|y\_&lt;b> | noise | 1 | ValueError: a\|b is &lt;bad> |" in lines
    assert "| ✗ worse |" in text
    assert "(Bonferroni; 5 of cells, 3 of main effects)" in text
    assert "inconclusive" in text
    assert "In bits/dim; higher is better." in text
    assert (
        "- fid: inception #ab12cd, bilinear to 299, 5,000 samples, against digits, train #00ff11, k=3; biased" in lines
    )
    assert "- the same in all runs: " not in text  # the share has no origin
    assert "moderated across the cells" in text
    assert "![Dot plot of the mean fid of 6 cells" in text
    assert "The best mean is that of cosine(s=0.02), noise with 8." in text


def test_table_of_all_runs(written):
    with written.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    first, failed, missing = rows[0], rows[13], rows[17]
    assert (first["schedule"], first["predicts"], first["seed"]) == ("linear", "noise", "0")
    assert float(first["fid"]) == value({"schedule": "linear", "predicts": "noise"}, 0)
    assert (first["images"], first["bits error"], first["seconds"]) == ("360", "0.01", "12.5")
    assert first["fid protocol"] == PROTOCOL.short()
    assert (failed["failure"], failed["fid"], missing["failure"]) == ("ValueError: a|b is <bad>", "", "missing")


class Page(HTMLParser):
    """Reads a page; keeps its elements, and fails on an element that is closed in the wrong order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_page(written):
    text = written.page.read_text()
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "<title>Schedules &amp; predictions</title>" in text
    assert page.all("script") == []
    assert page.all("img") == []
    assert not re.search(r'(?:src|href)="(?!#)|url\((?!#)|@import', text)
    assert "prefers-color-scheme: dark" in text
    pictures = page.all("svg")
    assert [p["role"] for p in pictures] == ["img", "img"]
    assert "Dot plot of the mean fid" in pictures[0]["aria-label"]
    assert "Training losses of 16 trainings over 3 seeds, colored by schedule" in pictures[1]["aria-label"]
    names = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(names) == len(set(names))
    regions = [attrs for attrs in page.all("div") if "scroll" in attrs.get("class", "")]
    assert len(regions) == len(page.all("table")) + 2
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)
    assert "Table: Effects on fid" in {attrs["aria-label"] for attrs in regions}
    assert {attrs["scope"] for attrs in page.all("th")} == {"col", "row"}
    assert '<td class="better">✓ better</td>' in text
    assert '<td class="worse">✗ worse</td>' in text
    assert len(page.all("details")) == 1
    assert "<bad>" in page.text
    assert "$x|y_<b>" in page.text
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert "currentColor" in drawn
    assert "var(--c0)" in drawn
    assert not re.search("#(?:1a1b1c|fefefd|d0d1d2|ffffff)", drawn)


def test_figures(written):
    assert [path.name for path in written.figures] == ["effects.png", "curves.png"]
    assert all(path.stat().st_size > 10_000 for path in written.figures)
    drawn = Page(written.page.read_text()).text
    for label in ("schedule linear", "✓ better", "? inconclusive", "baseline", "fid (lower is better"):
        assert label in drawn


def test_report_of_nothing_yet(tmp_path):
    runs = [Run({"guidance": g}, 0, None) for g in ("1", "2")]
    made = write(Results("Guidance", "", {"guidance": ["1", "2"]}, ["fid"], runs, 2), tmp_path)
    text = made.markdown.read_text()
    assert "**Partial: 2 of 2 runs are missing.**" in text
    assert "Not measured yet." in text
    assert "– missing" not in text  # no table without a number
    assert "| 2 | 0 |  |  | missing |" in text
    assert made.figures == []
    assert made.page.is_file()


def test_numbers_that_are_not_finite_are_listed(tmp_path):
    runs = [measured({"a": n}, s, float("nan") if n == "y" and s else 1.0 + s) for n in "xy" for s in range(2)]
    text = write(Results("A", "", {"a": ["x", "y"]}, ["fid", "recall"], runs), tmp_path).markdown.read_text()
    assert "| y | 1 | fid is not a finite number: left out |" in text
    assert "### recall\n\nNo run has this number." in text
    assert "recall was not measured" not in text  # once, and not for each run
    runs[2] = replace(
        runs[2], evaluation=Evaluation({}, [m for m in runs[2].evaluation.measurements if m.name != "bits"])
    )
    text = write(Results("A", "", {"a": ["x", "y"]}, ["fid", "bits"], runs), tmp_path).markdown.read_text()
    assert "| y | 0 | bits was not measured |" in text
    assert "| y | 1.00 | ? inconclusive: give 3 seeds or more | +0.00 |  |  | 1 |" in text


@pytest.mark.parametrize(("level", "text"), [(0.95, "95 %"), (1 - 0.05 / 23, "99.78 %"), (0.99, "99 %"), (0.5, "50 %")])
def test_percent(level, text):
    assert percent(level) == text


def test_decimals():
    assert decimals([0.03, 0.05, 0.02], []) == 3
    assert decimals([12.0], []) == 0
    assert decimals([float("nan")], [123.4]) == 1
    assert decimals([], []) == 2


def test_axis_and_curves():
    assert limits([1.0, 3.0]) == (0.5, 3.5, False)
    low, high, log = limits([1.0, 1000.0])
    assert log
    assert low < 1 < 1000 < high
    assert limits([]) == (0.0, 1.0, False)
    x, y, group = thinned(([float(n) for n in range(250)], [2.0] * 250))
    assert (group, len(x), x[0], x[-1]) == (3, 84, 1.0, 249.0)
    assert np.all(y == 2)


def test_pictures_of_a_page_are_inside(tmp_path):
    """The demo's report: PNG files become part of the page."""
    (tmp_path / "curves.png").write_bytes(b"png")
    (tmp_path / "other.png").write_bytes(b"other")
    text = "# Title\n\n![losses](curves.png)\n\n" + pages.table(["a", "b"], [["1", "2"]])
    source, page = pages.write(tmp_path, "report", text, "a < b")
    assert source.read_text() == text
    found = Page(page.read_text())
    assert found.all("img") == [{"src": "data:image/png;base64,cG5n", "alt": "losses"}]
    assert "<title>a &lt; b</title>" in page.read_text()
    assert [attrs["aria-label"] for attrs in found.all("div")] == ["Table: Title"]


def test_text_in_cells_of_tables():
    assert pages.cell("a|b *c* `d` [e] <f> & bits_per_dim _x_\nnext") == (
        r"a\|b \*c\* \`d\` \[e\] &lt;f> &amp; bits_per_dim \_x\_ next"
    )
