"""Versions of this program and of what it builds on."""

import tomllib
from importlib.metadata import PackageNotFoundError, version

from pipeline.search_path import ROOT

_BELOW = ("ray", "torch", "transformers", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of this program and of the libraries that decide what it computes."""
    return {"svdllm": _own()} | {package: version(package) for package in _BELOW}


def _own() -> str:
    try:
        return version("svdllm")
    except PackageNotFoundError:  # it runs from a bare working directory
        project = ROOT / "pyproject.toml"
        if not project.is_file():
            return "unknown"
        found: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return found
