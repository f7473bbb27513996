"""The architecture is a test."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared", "continuous", "discrete", "sde", "experiments")
SOURCES = sorted(p for package in (*PACKAGES, "benchmarks") for p in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "shared": {"shared"},
    "continuous": {"shared", "continuous"},
    "discrete": {"shared", "discrete"},
    "sde": {"shared", "sde"},
    "experiments": set(PACKAGES),
    "benchmarks": set(PACKAGES) | {"benchmarks"},
}


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path) -> set[tuple[str, ...]]:
    """Modules of this package that a file imports, as paths from the root."""
    here, found = module_of(path), set()
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "unnoise"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            found |= {
                (*base, a.name)
                if (ROOT.joinpath(*base, a.name).with_suffix(".py")).exists() or (ROOT.joinpath(*base, a.name)).is_dir()
                else tuple(base)
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "unnoise":
            found.add(tuple(node.module.split(".")[1:]))
    return found


def test_data_flow_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports {'.'.join(target)}"
        for path in SOURCES
        for target in imports(path)
        if target and target[0] not in MAY_IMPORT[module_of(path)[0]]
    ]
    assert not wrong


def test_no_import_cycle():
    graph = {tuple(module_of(p)): {t for t in imports(p) if t != tuple(module_of(p))} for p in SOURCES}
    done, on_path = set(), []

    def visit(node):
        if node in on_path:
            raise AssertionError(" -> ".join(".".join(n) for n in [*on_path[on_path.index(node) :], node]))
        if node in done or node not in graph:
            return
        on_path.append(node)
        for target in graph[node]:
            # A package's __init__ gathers its modules: what imports one of them does not depend on the gathering.
            if target != node[: len(target)]:
                visit(target)
        done.add(on_path.pop())

    for node in graph:
        visit(node)


def test_no_long_file():
    """400 lines of a source file, and 480 of a test: its cases are listed one by one."""
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    tests = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {str(path): count for path, count in lines.items() if count > 400}
    assert not {str(path): count for path, count in tests.items() if count > 480}


SAME_CONCEPT = {"Ancestral", "ClassifierFree", "ClassifierGuided", "VariationalBound"}
"""Names that two families export for their own forms of one thing."""


def public_names(module):
    module = importlib.import_module(f"unnoise.{module}")
    assert len(set(module.__all__)) == len(module.__all__)
    return {name: getattr(module, name) for name in module.__all__}


def test_a_name_means_one_thing():
    exported = {}
    gatherings = (".".join(module_of(path)) for path in SOURCES if path.name == "__init__.py")
    for module in (name for name in gatherings if name != "benchmarks" and not name.startswith("experiments")):
        for name, thing in public_names(module).items():
            exported.setdefault(name, []).append(thing)
    wrong = {name for name, things in exported.items() if any(thing is not things[0] for thing in things)}
    assert wrong <= SAME_CONCEPT


GAUSSIAN_CORE = {
    "Clipped",
    "DenoisingLoss",
    "Learned",
    "MinSNR",
    "OutputError",
    "Preconditioned",
    "Schedule",
    "Thresholded",
    "UniformDequantization",
    "VariationalDequantization",
    "clean",
    "likelihood_weight",
    "noise",
    "slerp",
    "snr",
    "straight",
    "truncated_snr",
    "velocity",
    "velocity_weight",
}
"""The part of `shared.gaussian` that both Gaussian families export."""


@pytest.mark.parametrize("family", ["continuous", "sde"])
def test_gaussian_families_export_one_core(family):
    assert public_names("shared.gaussian").keys() & public_names(family).keys() == GAUSSIAN_CORE


def test_bases_and_values_of_arguments_are_exported():
    """A user who writes a part of her own finds its base class next to the package's own parts."""
    assert public_names("sde").keys() >= {"FlowCoordinates", "Integrator", "Trace"}
    assert "Multistep" in public_names("continuous")
    shared = public_names("shared").keys()
    assert shared >= {"Corruption", "Denoiser", "Objective", "ObjectiveWrapper", "Sampler", "TimeInput", "TimeSampling"}
    inputs = importlib.import_module("unnoise.shared.time_inputs")
    own = {name for name, thing in vars(inputs).items() if getattr(thing, "__module__", None) == inputs.__name__}
    assert own - {"C", "rows_of"} <= shared
    variants = importlib.import_module("unnoise.shared.networks.unet_variants")
    named = {name for name, value in vars(variants).items() if isinstance(value, variants.UNetVariant)}
    assert {"Sinusoidal", "TimesSigma", "UNetVariant", *named} <= public_names("shared.networks").keys()


def test_serialized_names_are_not_module_paths():
    """A checkpoint contains `family.Name`, so modules can move."""
    importlib.import_module("unnoise.experiments")
    names = importlib.import_module("unnoise.shared.serialization")._NAMES
    own = {name: thing for thing, name in names.items() if thing.__module__.startswith("unnoise.")}
    first = {*PACKAGES, "gaussian", "networks", "data", "training"}
    assert len(own) > 150
    assert not [name for name in own if name.count(".") != 1 or name.split(".")[0] not in first]


def test_nothing_evaluates_or_unpickles():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                tensors_alone = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if name == "torch.load" and tensors_alone:
                    continue
                assert name not in (
                    "eval",
                    "exec",
                    "torch.load",
                    "pickle.load",
                    "pickle.loads",
                    "os.system",
                    "np.load",
                ), f"{path}: {name}"
                assert not any(k.arg == "shell" for k in node.keywords), path


def modules():
    return [
        importlib.import_module("unnoise." + ".".join(module_of(p)))
        for p in SOURCES
        if p.relative_to(ROOT).parts[0] in PACKAGES
    ]


def test_everything_public_says_what_it_is():
    for module in modules():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__ or not callable(thing):
                continue
            assert inspect.getdoc(thing), f"{module.__name__}.{name}"
            if inspect.isclass(thing):
                for method in (m for m in vars(thing) if not m.startswith("_") and inspect.isfunction(vars(thing)[m])):
                    inside_network = "networks" in module.__name__ and method == "forward"
                    assert inside_network or inspect.getdoc(getattr(thing, method)), (
                        f"{module.__name__}.{name}.{method}"
                    )


def test_importing_a_family_is_light():
    """And imports no other: each in a process of its own, forked from one that has imported torch alone."""
    code = """
        import importlib, os, sys, torch
        for family in ("continuous", "discrete", "sde"):
            if not (child := os.fork()):
                importlib.import_module(f"unnoise.{family}")
                others = {"continuous", "discrete", "experiments", "sde"} - {family}
                heavy = ["datasets", "matplotlib", "tyro", "tokenizers", *(f"unnoise.{other}" for other in others)]
                print(family, [m for m in heavy if m in sys.modules], flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.splitlines() == ["continuous []", "discrete []", "sde []"], out.stderr


def test_classes_are_abstract_or_final():
    """No class of the package derives from a concrete class of the package."""
    classes = [
        c
        for module in modules()
        for _, c in inspect.getmembers(module, inspect.isclass)
        if c.__module__ == module.__name__
    ]
    for c in classes:
        for base in c.__mro__[1:]:
            if base.__module__.startswith("unnoise.") and not issubclass(base, Exception):
                assert inspect.isabstract(base), f"{c.__name__} derives from the concrete {base.__name__}"
