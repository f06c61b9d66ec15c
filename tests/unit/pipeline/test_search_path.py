"""What lies beside the program, and in whose place Python would take it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import search_path
from pipeline.cluster.session import _Job
from pipeline.search_path import for_workers, hiding
from tests.integration.support import copy_packages

INSTALLED = next(entry for entry in reversed(sys.path) if entry.endswith("site-packages"))


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that Python puts first, before what is installed and this program."""
    rest = [entry for entry in sys.path if entry]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *rest, INSTALLED])
    return tmp_path


@pytest.mark.parametrize("name", ["workers", "schemas", "datasets", "torch", "yaml"])
@pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
def test_a_module_of_ours_or_of_a_library_is_hidden_by_one_beside_it(
    name: str, form: str, beside: Path
) -> None:
    path = beside / form.format(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert hiding() == (path if path.parent == beside else path.parent)


@pytest.mark.parametrize("name", ["mine.py", "test.py", "random.py", "datasets/train.py", "torch/"])
def test_what_hides_nothing_that_is_installed_is_left_alone(name: str, beside: Path) -> None:
    """A folder without __init__.py is not a package if there is one of that name."""
    path = beside / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
    assert hiding() is None


def test_a_bare_checkout_is_meant_where_another_is_installed(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_path, "ROOT", copy_packages(beside / "bare"))
    sys.path.insert(0, str(beside / "bare"))
    assert hiding() is None
    assert for_workers() == [str(beside / "bare")]


def test_workers_get_no_folder_of_the_driver(beside: Path) -> None:
    job = _Job()
    assert for_workers() == job._py_driver_sys_path == []
    assert job._runtime_env_has_working_dir()


def test_a_module_in_a_bare_checkout_is_refused_by_name_before_anything_starts(
    tmp_path: Path,
) -> None:
    bare = copy_packages(tmp_path / "bare")
    (bare / "datasets").mkdir()
    (bare / "datasets" / "__init__.py").write_text("raise RuntimeError('it was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan", "--help"],
        cwd=bare,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {bare / 'datasets'} hides the installed module of that name from this program "
        "and its workers; rename it, or start from another folder\n"
    )
