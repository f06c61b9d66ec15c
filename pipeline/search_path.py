"""Where Python looks for modules: nothing that lies in a working directory may hide one of ours."""

import pkgutil
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]
_OWN = {"svdllm", "schemas", "workers", "pipeline", "runtime", "benchmarks", "tests"}


def first() -> Path:
    """The folder that Python put first: that of the script, or the working directory."""
    return Path(sys.path[0]).resolve()


def for_workers() -> list[str]:
    """What workers need on their path that is not installed: our packages in a bare checkout."""
    return [str(ROOT)] if first() == ROOT else []


def hiding() -> Path | None:
    """The first module of that folder in whose place an installed one was meant, if there is one.

    Another version of this program may be installed; modules of Python itself are its own affair.
    """
    folder, python = first(), Path(sysconfig.get_path("stdlib")).resolve()
    elsewhere = {folder, python, python / "lib-dynload"}
    installed = [entry for entry in sys.path if Path(entry).resolve() not in elsewhere]
    for module in pkgutil.iter_modules([str(folder)]):
        ours = folder == ROOT and module.name in _OWN
        if not ours and PathFinder.find_spec(module.name, installed):
            return folder / (module.name if module.ispkg else f"{module.name}.py")
    return None
