"""What a bug report should begin with."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import versions as module
from pipeline.cli.app import app
from pipeline.versions import versions


def test_the_command_says_its_versions_and_ends() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    said = dict(line.split(" ") for line in done.output.splitlines())
    assert said == versions()
    assert said["torch"] == version("torch")


def test_a_bare_working_directory_has_the_version_of_its_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = versions()

    def missing_itself(package: str) -> str:
        if package == "svdllm":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(module, "version", missing_itself)
    assert versions() == installed
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert versions() == installed | {"svdllm": "unknown"}
