"""The documented installation is the one that make runs, and its constraints name everything it brings."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hranet_arch

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "hranet-arch"
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")  # torch asks for the ones that its own build needs


def read_constraints() -> dict[str, Requirement]:
    """The lines of constraints.txt that hold for this Python, by canonical name."""
    lines = (line.split("#")[0].strip() for line in (REPOSITORY / "constraints.txt").read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def find_required(name: str, extras: frozenset[str], found: dict[str, str]) -> dict[str, str]:
    """Adds to ``found`` the installed version of all that ``name[extras]`` needs, and of what that needs in turn."""
    for line in metadata.requires(name) or ():
        required = Requirement(line)
        key = canonicalize_name(required.name)
        is_wanted = required.marker is None or any(required.marker.evaluate({"extra": e}) for e in extras | {""})
        if not is_wanted or key in found:
            continue
        try:
            found[key] = metadata.version(key)
        except metadata.PackageNotFoundError:  # the environment's owner did without it
            continue
        find_required(key, frozenset(required.extras), found)
    return found


@pytest.fixture(scope="module")
def installed() -> dict[str, str]:
    """What the package and its tests need, with the versions that are installed."""
    try:
        return find_required(PACKAGE, frozenset({"dev"}), {})
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed here")


@pytest.fixture(scope="module")
def pip_lines() -> list[str]:
    """What `make install` runs of pip on Python 3.10 to 3.12, in order, with its Python called ``python``."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    settings = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # not of the outer make
    command = ["make", "--dry-run", "--always-make", "install", "VENV=here", "NEEDS_WHEEL=", f"PYTHON={sys.executable}"]
    output = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^here/bin/(python -m pip install .*)$", output, re.MULTILINE)


def test_make_installs_in_two_lines(pip_lines):
    assert len(pip_lines) == 2
    assert pip_lines[0].endswith(" setuptools") and pip_lines[1].endswith(" -e '.[dev]'")


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_documented_recipe_is_the_one_make_runs(page, pip_lines):
    """Each line for a reader's shell that installs by the constraints is one of make's, with `.` for `-e '.[dev]'`."""
    path = REPOSITORY / page
    if not path.is_file():
        pytest.skip(f"{page} is not here")
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    setuptools_line, package_line = pip_lines
    recipe = package_line.removesuffix(" -e '.[dev]'")
    documented = [line.split("  #")[0].strip() for line in lines if line.startswith(recipe)]
    assert documented, f"{page} does not show: {package_line}"
    assert set(documented) <= {package_line, f"{recipe} ."}
    assert setuptools_line in (line.split("  #")[0].strip() for line in lines)


def test_constraints_are_exact_and_of_no_build():
    for pin in read_constraints().values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin}: one exact version, no local one such as +cpu"


def test_constraints_name_all_that_is_installed(installed):
    unnamed = {name for name in installed if not name.startswith(CUDA_PACKAGES)} - read_constraints().keys()
    assert not unnamed


def test_installed_versions_are_the_constrained_ones(installed):
    if not Path(sys.prefix, ".installed").is_file():
        pytest.skip("this environment was not made by make: its versions are its owner's")
    pins = read_constraints()
    differing = {
        name: version
        for name, version in installed.items()
        if name in pins and not pins[name].specifier.contains(version, prereleases=True)
    }
    assert not differing


def test_tensorboard_is_asked_for_once(installed):
    """BasicSR asks for `tb-nightly`, which holds the same files; TensorBoard does not start with both."""
    assert "tensorboard" not in installed


def test_tensorboard_starts(installed):
    """tb-nightly imports pkg_resources, which setuptools 82 dropped."""
    command = [sys.executable, "-m", "tensorboard.main", "--version"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version_is_the_packages():
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == hranet_arch.__version__


@pytest.mark.parametrize("name", ["basicsr", "hranet"])
def test_console_script_is_declared(name, installed):
    scripts = metadata.distribution(PACKAGE).entry_points.select(group="console_scripts", name=name)
    assert [script.value for script in scripts] == ["hranet_arch.cli:main"]
