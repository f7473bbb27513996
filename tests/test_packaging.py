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
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, **options).stdout.strip()


def python(code, **options):
    return run(sys.executable, "-c", code, cwd="/", **options)


def test_importing_the_package_imports_no_torch():
    heavy = "('torch', 'numpy', 'scipy', 'matplotlib', 'datasets')"
    assert python(f"import unnoise, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_version_and_lazy_parts():
    assert re.fullmatch(r"\d+\.\d+\.\d+", unnoise.__version__)
    code = "import unnoise; print(unnoise.sde.VP().beta_max, unnoise.load is unnoise.experiments.load, *dir(unnoise))"
    beta, same, *names = python(code).split()
    assert (beta, same) == ("20.0", "True")
    assert {"__version__", "load", *FAMILIES} <= set(names)
    with pytest.raises(AttributeError, match="has no attribute 'schedules'"):
        _ = unnoise.schedules


def test_packages_of_shared_are_imported_when_first_used():
    code = "import sys, unnoise; unnoise.shared.Sampler; "
    code += "print([name for name in unnoise.shared._PACKAGES if f'unnoise.shared.{name}' in sys.modules], "
    code += "'matplotlib' in sys.modules, unnoise.shared.figures.save_grid.__name__, *dir(unnoise.shared))"
    early, heavy, name, *names = python(code).split()
    assert (early, heavy, name) == ("[]", "False", "save_grid")
    packages = {p.parent.name for p in (ROOT / "shared").glob("*/__init__.py")}
    assert packages == set(unnoise.shared._PACKAGES)
    assert packages | set(unnoise.shared.__all__) <= set(names)
    with pytest.raises(AttributeError, match="has no attribute 'schedules'"):
        _ = unnoise.shared.schedules


def test_the_source_folder_links_to_the_families():
    home = ROOT / "src" / "unnoise"
    own = {"__init__.py", "__main__.py", "py.typed"}
    assert {p.name for p in home.iterdir() if p.name != "__pycache__"} == own | set(FAMILIES)
    for name in FAMILIES:
        assert os.readlink(home / name) == f"../../{name}"
        missing = [p.parent for p in (ROOT / name).rglob("*.py") if not (p.parent / "__init__.py").exists()]
        assert not missing


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository with one commit of the working tree, in which nothing was ever built."""
    home = tmp_path_factory.mktemp("clone") / "unnoise"
    for name in present_files():
        copy = home / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy, follow_symlinks=False)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    run(*git, "init", "-q", cwd=home)
    run(*git, "add", "--all", "--force", cwd=home)
    run(*git, "commit", "-q", "-m", "all files", cwd=home)
    return home


def present_files():
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in files if os.path.lexists(ROOT / name)]


def packaged_files(home):
    """The files that a package made from a clone contains, under `unnoise/`."""
    tracked = [name for name in run("git", "ls-files", cwd=home).splitlines() if name.split("/")[0] in FAMILIES]
    return {f"unnoise/{path}" for path in [*tracked, "__init__.py", "__main__.py", "py.typed"]}


def test_an_installed_clone_holds_real_files(clone, tmp_path):
    """`pip install git+...`, into a folder of packages."""
    run(*PIP, "install", "-q", "--no-deps", "--no-compile", "--target", tmp_path, f"git+file://{clone}")
    assert not [path for path in (tmp_path / "unnoise").rglob("*") if path.is_symlink()]
    files = {str(path.relative_to(tmp_path)) for path in (tmp_path / "unnoise").rglob("*") if path.is_file()}
    assert files == packaged_files(clone)
    version = unnoise.__version__
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "unnoise", f"unnoise-{version}.dist-info"}
    assert f"Version: {version}\n" in (tmp_path / f"unnoise-{version}.dist-info" / "METADATA").read_text()
    code = "import unnoise; from unnoise.shared.data import image_dataset; import unnoise.experiments; "
    code += "print(unnoise.__file__, len(image_dataset('digits').k))"
    path, count = python(code, env=os.environ | {"PYTHONPATH": str(tmp_path)}).split()
    assert (Path(path).parent.parent, int(count)) == (tmp_path, 1500)


def test_a_source_distribution_builds_a_whole_wheel(clone, tmp_path):
    (requirement,) = re.findall(r'^requires = \["(setuptools.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    run(*PIP, "install", "-q", "--target", tmp_path / "tools", requirement)
    options = {"env": os.environ | {"PYTHONPATH": str(tmp_path / "tools")}}
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run("git", "clone", "-q", clone, tmp_path / "source")
    run(sys.executable, "-c", code, tmp_path / "sdist", cwd=tmp_path / "source", **options)
    (source,) = (tmp_path / "sdist").glob("unnoise-*.tar.gz")
    run(*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source, **options)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if name.startswith("unnoise/")}
    assert files == packaged_files(clone)
