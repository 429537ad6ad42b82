"""The built wheel, used outside the repository: it holds what is needed, and no top-level module but `typicality`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("cli", "configs", "typicality", "LICENSE", "NOTICE", "README.md", "pyproject.toml")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy (so that the repository stays clean) by way of the source archive."""
    copy = tmp_path_factory.mktemp("copy")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory):
    """Run Python with the wheel installed in a folder of its own, outside the repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place / "site")]
    subprocess.run([*command, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(place / "site"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
        )

    return python


def test_everything_is_below_typicality(names: set[str]):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.startswith("typicality-")} == {"typicality"}


def test_every_module_of_the_repository_is_in_the_wheel(names: set[str]):
    """A new folder that nobody added to `packages` in pyproject.toml would be missing."""
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "typicality").rglob("*.py")}
    modules |= {f"typicality/{p.relative_to(ROOT)}" for n in ("cli", "configs") for p in (ROOT / n).rglob("*.py")}
    assert modules <= names


def test_every_data_file_of_the_repository_is_in_the_wheel(names: set[str]):
    """Embedded data, weights, settings, templates: everything beside the modules that is not compiled."""
    data = [p.relative_to(ROOT) for p in (ROOT / "typicality").rglob("*") if p.is_file()]
    data = [p for p in data if p.suffix not in (".py", ".pyc") and not any(part.startswith(".") for part in p.parts)]
    expected = {str(p) for p in data}
    expected |= {f"typicality/configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")}
    assert "typicality/dataset/builtin/emoji.parquet" in expected
    assert expected <= names


def test_licences_travel_with_the_wheel(names: set[str]):
    licences = {name.rsplit("/", 1)[-1] for name in names if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def test_the_package_is_the_installed_one(elsewhere):
    done = elsewhere("-c", "import typicality, typicality.cli as c; print(typicality.__file__, c.__file__, sep='|')")
    package, cli = done.stdout.strip().split("|")
    assert "/site/typicality/" in package
    assert "/site/typicality/cli/" in cli


def test_there_is_no_module_cli(elsewhere):
    done = elsewhere("-c", "import cli")
    assert done.returncode != 0
    assert "No module named 'cli'" in done.stderr


def test_the_command_runs(elsewhere):
    assert elsewhere("-m", "typicality.cli", "--version").stdout.startswith("typicality ")


def test_the_embedded_data_is_found(elsewhere):
    """Settings and data come from the installed package, wherever the working directory is."""
    done = elsewhere("-m", "typicality.cli", "mine", "flags", "--label", "continent", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "flag, {label}" in done.stdout
