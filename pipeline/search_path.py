"""Python's module path: nothing in a working directory may hide one of our modules."""

import pkgutil
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]
_OWN = {"svdllm", "schemas", "workers", "pipeline", "runtime", "benchmarks", "tests"}


def first() -> Path:
    """Return the folder that Python put first: the script's, or the working directory."""
    return Path(sys.path[0]).resolve()


def for_workers() -> list[str]:
    """Return paths that workers need beyond what is installed: our packages in a bare checkout."""
    return [str(ROOT)] if first() == ROOT else []


def hiding() -> Path | None:
    """Return the first module in that folder that hides an installed one; None if there is none.

    Our own packages may also be installed; the standard library is not checked.
    """
    folder, python = first(), Path(sysconfig.get_path("stdlib")).resolve()
    elsewhere = {folder, python, python / "lib-dynload"}
    installed = [entry for entry in sys.path if Path(entry).resolve() not in elsewhere]
    for module in pkgutil.iter_modules([str(folder)]):
        ours = folder == ROOT and module.name in _OWN
        if not ours and PathFinder.find_spec(module.name, installed):
            return folder / (module.name if module.ispkg else f"{module.name}.py")
    return None
