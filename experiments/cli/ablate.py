"""The command `unnoise ablate`: a grid of runs, and the report of their differences."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, make_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...shared.errors import UsageError
from ...shared.progress import bar, beside_bar
from ..ablation import Ablation, Setup
from ..ablation.grid import Change, split_levels
from ..ablation.parallel import WORKER, natural_processes, stopped_by_signals, work_as_worker, work_in_processes
from ..ablation.runs import PLAN, Plan, work
from ..notation import average_named
from ..own_files import IMPORTED, module_options, named_in_file, own_module
from ..program import program
from ..recipe import Recipe
from ..recipes import RECIPES, find
from ..studies.ablations import ABLATIONS
from .arguments import Modules
from .recipe_options import option, options_of, settings_of, with_arguments, with_options, with_parts
from .training import emptied

SEEDS = ("training.seed", "data.seed")
"""The settings that differ between the runs of one combination."""
WITHOUT = ("figure",)
"""The settings of a recipe that an ablation does not take."""
Vary = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="SETTING=A,B",
        help='A setting and its levels in the notation of parts, such as "schedule=linear,cosine(s=0.02)"; once for '
        "each factor. The first level is the baseline. average=raw,decay(0.99) varies the weights that are measured.",
    ),
]


@dataclass(frozen=True)
class Ablate:
    """Runs a grid of recipes and seeds, and reports their differences with intervals and verdicts.

    `unnoise ablate ddpm-digits --vary "schedule=linear,cosine(s=0.02)" --vary predicts=noise,velocity --seeds 3` trains
    and measures every combination with every seed. NAME is a recipe, an ablation of this package (listed below), an
    ablation or recipe of your own as FILE.py:NAME, or the folder of an ablation, which is continued. Runs that differ
    in sampling alone are trained once. What is finished is not run again; a run that fails is a row of the report.
    Started again on the same folder, on this or another machine, it shares the runs that are left. On Slurm:
    `unnoise submit --jobs 8 ablate NAME --out FOLDER`.
    """

    name: tyro.conf.Positional[str]
    """A recipe such as ddpm-digits, an ablation, FILE.py:NAME, or the folder of an ablation."""


listed = "\n".join(f"- {name}: {(make.__doc__ or '').strip().splitlines()[0]}" for name, make in ABLATIONS.items())
Ablate.__doc__ = f"{inspect.getdoc(Ablate)}\n\nAblations of this package:\n\n{listed}"


@dataclass(frozen=True)
class Running:
    """How the runs are done."""

    processes: int | None = None
    """Number of processes that share the runs on this machine; None for one for each GPU, or core without GPUs."""
    retry: bool = False
    """Whether runs that failed are run again."""


@dataclass(frozen=True)
class Measured:
    """What is varied and measured."""

    vary: Vary = ()
    seeds: int = 3
    """Number of seeds of each combination; with fewer than 3, only the largest differences can be told."""
    measures: tuple[str, ...] = ()
    """Names of the numbers in the report, such as bits_per_dim frechet; the first is the main one."""
    count: int | None = None
    """Number of held-out examples whose code length is measured, such as 200; None for all."""
    samples: int | None = None
    """Number of samples of each run; None for as many as held-out examples."""
    features: tuple[str, ...] = ()
    """Features by which samples of images are compared, such as judge or inception; the judge by default."""
    without: tuple[str, ...] = ()
    """What is not measured, such as code-length."""


def options_for(name: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command with the options of an ablation, and the arguments that are left."""
    if (Path(name) / PLAN).is_file() and name not in (*ABLATIONS, *RECIPES):
        return continued(Path(name), WORKER in arguments), [word for word in arguments if word != WORKER]
    found = ablation_or_recipe(name)
    return of_ablation(found, name, arguments) if isinstance(found, Ablation) else of_recipe(found, name, arguments)


def ablation_or_recipe(name: str) -> Ablation | Recipe:
    """Returns the ablation or the recipe of a name.

    Raises:
        UsageError: for an unknown name; the message suggests the nearest ones.
    """
    if name in ABLATIONS:
        return ABLATIONS[name]()
    if ":" in name:
        function = named_in_file(*name.rsplit(":", 1))
        found = function if isinstance(function, Ablation) else function() if callable(function) else function
        if not isinstance(found, Ablation | Recipe):
            raise UsageError(f"{name} is neither an Ablation nor a recipe: give one, or a function that returns one")
        return found
    if name not in RECIPES:
        near = difflib.get_close_matches(Path(name).name, [*ABLATIONS, *RECIPES], n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "`unnoise recipes` and `unnoise ablate --help` list the names"
        raise UsageError(f"{name} is not an ablation, a recipe or the folder of an ablation: {hint}")
    return find(name)


def continued(folder: Path, worker: bool) -> type:
    """Returns the class of the command for the folder of an ablation; a `worker` only does runs, without a report."""

    def execute(options: Any) -> None:
        for file in options.module:
            own_module(file)
        if worker:
            work_as_worker(Plan.read(folder))
        else:
            perform(Plan.read(folder), options)

    cls = make_dataclass(
        "Ablate",
        [("module", Modules, field(default=()))],
        bases=(Running,),
        namespace={"execute": execute},
        frozen=True,
    )
    cls.__doc__ = f"Continues the ablation in {folder}."
    return cls


def of_ablation(ablation: Ablation, name: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command for a declared ablation."""
    out = Path("runs/ablations") / name.rpartition(":")[2]

    def execute(options: Any) -> None:
        chosen = ablation if options.seeds is None else replace(ablation, seeds=options.seeds)
        begin(chosen.smaller() if options.smoke else chosen, options)

    fields: list[Any] = [
        ("out", Annotated[Path, tyro.conf.arg(help=OUT)], field(default=out)),
        (
            "seeds",
            Annotated[int | None, tyro.conf.arg(help="Number of seeds; None for that of the ablation.")],
            field(default=None),
        ),
        ("smoke", Annotated[bool, tyro.conf.arg(help=SMOKE)], field(default=False)),
        ("module", Modules, field(default=())),
    ]
    cls = make_dataclass("Ablate", fields, bases=(Running,), namespace={"execute": execute}, frozen=True)
    cls.__doc__ = f"{ablation.title}. {ablation.question}\n\n{len(list(ablation.cases()))} runs."
    return cls, list(arguments)


def of_recipe(base: Recipe, name: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command for a recipe, with its settings as options."""
    recipe, rest = with_parts(base, arguments, WITHOUT)

    def execute(options: Any) -> None:
        chosen = with_options(recipe, options, WITHOUT)
        setup = Setup(chosen, None, options.count, options.samples, options.features, options.without)
        refuse_other_seeds(chosen, base)
        factors = [factor_of(text, chosen) for text in options.vary]
        vary = dict(factors)
        if len(vary) < len(factors):
            twice = next(name for n, (name, _) in enumerate(factors) if name in dict(factors[:n]))
            raise UsageError(f"--vary {twice} is given twice: give all levels of a setting in one --vary")
        if not vary:
            raise UsageError('an ablation varies something: give --vary "schedule=linear,cosine(s=0.02)"')
        measures = options.measures or measures_of(chosen)
        title = f"{name}: {' x '.join(vary)}"
        question = f"The recipe `{name}` with {options.seeds} seeds of each combination."
        ablation = Ablation(setup, vary, options.seeds, measures, title, question)
        begin(ablation.smaller() if options.smoke else ablation, options)

    out = Path("runs/ablations") / name.rpartition(":")[2]
    fields: list[Any] = [
        ("out", Annotated[Path, tyro.conf.arg(help=OUT)], field(default=out)),
        ("smoke", Annotated[bool, tyro.conf.arg(help=SMOKE)], field(default=False)),
        ("module", Modules, field(default=())),
        *options_of(recipe, WITHOUT),
    ]
    cls = make_dataclass("Ablate", fields, bases=(Measured, Running), namespace={"execute": execute}, frozen=True)
    cls.__doc__ = f"Runs a grid of changes of {name} with several seeds, and reports their differences."
    return cls, rest


OUT = "Folder of the ablation; an ablation that is there is continued."
SMOKE = "Whether to try every part of the ablation in seconds: two levels of each factor, two seeds, few steps."


def measures_of(recipe: Recipe) -> tuple[str, ...]:
    """Returns the measurements that are reported of a recipe by default."""
    if Path(recipe.picture).suffix == ".txt":
        return ("bits_per_token", "generative_perplexity_per_token_5_gram", "sample_entropy_bits")
    if recipe.data.real_valued:
        return ("nats_per_dim_of_density", "frechet")
    return ("bits_per_dim", "frechet")


def factor_of(text: str, recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Returns the name of a factor and its levels from `SETTING=A,B`.

    Raises:
        UsageError: for an unknown setting, which suggests the nearest ones, and for a level that the setting refuses.
    """
    name, equals, levels = text.partition("=")
    path = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not levels.strip():
        raise UsageError(f"--vary {text}: give a setting and its levels, such as schedule=linear,cosine")
    if path in SEEDS:
        raise UsageError(
            f"--vary {path}: all combinations are run with the seeds 0, 1, ...: give their number, --seeds"
        )
    found = {level: change_of(path, level, recipe) for level in split_levels(levels)}
    for level, change in found.items():
        try:
            with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
                change(Setup(recipe))
        except UsageError as error:
            raise UsageError(f"--vary {path}={level}: {error}") from error
        except SystemExit as error:  # the type of the setting does not fit
            raise UsageError(
                f"--vary {path}={level}: the setting does not take this value: {typed(path, recipe)}"
            ) from error
    return path, found


def refuse_other_seeds(recipe: Recipe, base: Recipe) -> None:
    """Raises `UsageError` for a seed that the command line gives, in place of which each run has its own."""
    for path in SEEDS:
        owner = path.partition(".")[0]
        given, own = (getattr(getattr(r, owner), "seed", None) for r in (recipe, base))
        if given != own:
            raise UsageError(f"--{path} {given}: the runs have the seeds 0, 1, ...: give their number, --seeds")


def typed(path: str, recipe: Recipe) -> str:
    """Returns what a setting takes, in words."""
    path = recipe.shorthands.get(path, path)
    types = {s.path: s.type for s in settings_of(recipe, recipe.catalog, WITHOUT)}
    return (
        f"it takes {getattr(types[path], '__name__', types[path])}" if path in types else "see `unnoise train --help`"
    )


def change_of(path: str, level: str, recipe: Recipe) -> Change:
    """Returns the change of a setup that gives a setting a value in the notation of parts."""
    if path == "average":
        try:
            average_named(level)
        except UsageError as error:
            raise UsageError(f"--vary average={level}: {error}") from error
        return lambda setup: replace(setup, average=level)
    known = {s.path: s for s in settings_of(recipe, recipe.catalog, WITHOUT)}
    head = next((p for p in (*known, *recipe.shorthands) if path == p or path.startswith(f"{p}.")), None)
    if head is None and path != "data":
        near = difflib.get_close_matches(path, ["average", *known, *recipe.shorthands], n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "`unnoise train NAME --help` lists the settings"
        raise UsageError(f"--vary {path}: the recipe has no setting of that name: {hint}")
    if head == path and path in known and known[path].type is bool:
        if level.lower() not in ("true", "false"):
            raise UsageError(f"--vary {path}={level}: give true or false")
        arguments = [option(path if level.lower() == "true" else negated(path))]
    else:
        arguments = [option(path), level]
    return lambda setup: replace(setup, recipe=with_arguments(setup.recipe, arguments, WITHOUT))


def negated(path: str) -> str:
    """Returns the option that sets a setting to False."""
    group, dot, name = path.rpartition(".")
    return f"{group}{dot}no_{name}"


def begin(ablation: Ablation, options: Any) -> None:
    """Writes the plan of an ablation into its folder, and does its runs."""
    out = options.out
    refuse_processes(options.processes)
    if out.is_dir() and any(out.iterdir()) and not (out / PLAN).is_file():
        raise UsageError(f"--out {out} contains something else than an ablation: give another folder")
    with emptied(out) as folder:
        plan = Plan.of(ablation, folder)
        refuse_measures(plan)
        if left_out := plan.left_out():
            print(
                f"note: {out} has {left_out} finished run{'s' * (left_out > 1)} of other settings, which the new "
                "report leaves out: they stay there, and are not run again when their settings are given again"
            )
        plan.write()
        perform(plan, options)


def refuse_measures(plan: Plan) -> None:
    """Raises `UsageError` for what the runs of a plan cannot measure or leave out, before one is trained."""
    known = set()
    for setup in (case.setup for case in plan.cases):
        data, wanted = setup.recipe.data, (setup.features, setup.without, setup.samples)
        if (type(data), *wanted) not in known:
            data.refuse_measures(*wanted)
            known.add((type(data), *wanted))


def perform(plan: Plan, options: Any) -> None:
    """Does the runs of a plan that are left, and writes the report."""
    refuse_processes(options.processes)
    again = plan.retry() if options.retry else 0
    left, total = len(plan.pending()), len(plan.cases)
    processes = min(options.processes or natural_processes(left), max(left, 1))
    models = len({plan.trained(case) for case in plan.pending()})
    to_do = f"; {left} to do with {models} training{'s' * (models > 1)} in {processes} process{'es' * (processes > 1)}"
    print(
        f"{total} run{'s' * (total > 1)} in {plan.folder}/, {total - left} of them finished"
        f"{f', {again} failed ones again' * bool(again)}{to_do * bool(left)}"
    )
    try:
        with stopped_by_signals():
            if processes == 1:
                work(plan, bar, say=beside_bar)
            else:
                modules = [word for file in IMPORTED for word in ("--module", file)]
                work_in_processes(plan, processes, modules, bar, beside_bar)
    finally:
        report(plan)


def refuse_processes(number: int | None) -> None:
    """Raises `UsageError` for a number of processes below 1."""
    if number is not None and number < 1:
        raise UsageError(f"--processes {number}: give a whole number of at least 1")


def report(plan: Plan) -> None:
    """Writes the report of the results so far, and prints where it is."""
    from ..ablation.report import write

    results = plan.results()
    written = write(results, plan.folder)
    print(f"written to {written.markdown}, {written.page} and {written.table}")
    failed = sum(bool(run.failure) for run in results.runs)
    if failed:
        runs = f"{failed} run{'s' * (failed > 1)} failed"
        print(f"{runs}: {program()} ablate {plan.folder} --retry{module_options()} runs what failed again")
