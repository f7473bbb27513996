"""What an installed package contains: a version, types, real files, and no import before it is needed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import unnoise

ROOT = Path(__file__).parent.parent
FAMILIES = ("continuous", "discrete", "experiments", "sde", "shared")


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, **options).stdout.strip()


def python(code, **options):
    return run(sys.executable, "-c", code, cwd="/", **options)


def test_importing_the_package_imports_no_torch():
    heavy = "('torch', 'numpy', 'scipy', 'matplotlib', 'datasets')"
    assert python(f"import unnoise, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_a_family_imports_no_other():
    others = "[m for m in ('continuous', 'discrete', 'experiments') if f'unnoise.{m}' in sys.modules]"
    assert python(f"import unnoise.sde, sys; print({others})") == "[]"


def test_version_and_lazy_parts():
    assert re.fullmatch(r"\d+\.\d+\.\d+", unnoise.__version__)
    code = "import unnoise; print(unnoise.sde.VP().beta_max, unnoise.load is unnoise.experiments.load, *dir(unnoise))"
    beta, same, *names = python(code).split()
    assert (beta, same) == ("20.0", "True")
    assert {"__version__", "load", *FAMILIES} <= set(names)
    with pytest.raises(AttributeError, match="has no attribute 'schedules'"):
        _ = unnoise.schedules


def test_the_source_folder_links_to_the_families():
    home = ROOT / "src" / "unnoise"
    assert {p.name for p in home.iterdir() if p.name != "__pycache__"} == {"__init__.py", "py.typed", *FAMILIES}
    for name in FAMILIES:
        assert os.readlink(home / name) == f"../../{name}"
        missing = [p.parent for p in (ROOT / name).rglob("*.py") if not (p.parent / "__init__.py").exists()]
        assert not missing


@pytest.mark.slow
def test_a_wheel_holds_real_files(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in (name for name in files if (ROOT / name).exists()):  # a folder that was never built in, as a clone is
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy, follow_symlinks=False)
    run(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, tmp_path / "source")
    (wheel,) = tmp_path.glob("*.whl")
    tracked = [name for name in files if name.startswith(FAMILIES) and (ROOT / name).exists()]
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("unnoise/")}
        assert held == {f"unnoise/{path}" for path in [*tracked, "__init__.py", "py.typed"]}
    run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    code = "import unnoise; from unnoise.shared.data import image_dataset; import unnoise.experiments; "
    code += "print(unnoise.__file__, len(image_dataset('digits').k))"
    path, count = python(code, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}).split()
    assert (Path(path).parent.parent, int(count)) == (tmp_path / "site", 1500)
    assert not [p for p in (tmp_path / "site").iterdir() if p.name in ("shared", "tests", "continuous")]
    with zipfile.ZipFile(wheel) as archive:
        version = unnoise.__version__
        assert f"Version: {version}\n" in archive.read(f"unnoise-{version}.dist-info/METADATA").decode()


@pytest.mark.slow
def test_a_users_script_has_every_type(tmp_path):
    """`basedpyright` knows every type of a script with a network of its own, from the installed package."""
    script = tmp_path / "script.py"
    script.write_text((ROOT / "tests" / "typed" / "own_network.py").read_text())
    rules = (
        "UnknownVariableType",
        "UnknownMemberType",
        "UnknownArgumentType",
        "UnknownParameterType",
        "MissingImports",
    )
    settings = ", ".join(f'"report{rule}": "error"' for rule in rules)
    (tmp_path / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "basic", {settings}}}')
    checker = Path(sys.executable).with_name("basedpyright")
    found = subprocess.run(
        [checker, "--pythonpath", sys.executable, "-p", tmp_path], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
