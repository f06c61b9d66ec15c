"""The quick start and the page about Python, run as they stand, on a tiny model."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import app
from tests.documents import ROOT, blocks, commands, own_arguments
from tests.models import tiny_model
from tests.prose import prose


@pytest.fixture
def checkout(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what `make demo` leaves, as the current one."""
    demo = tmp_path / "build/demo"
    tiny_model(demo / "SmolLM2-135M-Instruct")
    (demo / "text").mkdir()
    (demo / "text/calibration.txt").write_text(prose(40_000))
    (demo / "text/evaluation.txt").write_text(prose(12_000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(page: Path) -> dict[str, Any]:
    """The names that the Python of a page leaves."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


def test_quick_start(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs/quick-start.md"
    ours = [words for found in commands(page) if (words := own_arguments(found))]
    assert [words[0] for words in ours] == [
        *("plan", "compress", "status", "verify", "evaluate", "report")
    ]
    for words in ours:
        assert app(words, standalone_mode=False) in (None, 0), words
    names = run_python(page)
    assert names["model"].config.model_type == "llama"
    for ratio in ("ratio-0.20", "ratio-0.40"):
        assert (checkout / "build/first" / ratio / "report.html").is_file()
    assert (checkout / "build/first.html").is_file()
    assert "ratio 0.4" in capsys.readouterr().out


def test_python(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python(ROOT / "docs/python.md")
    assert [output.ratio for output in names["result"].outputs] == [0.2, 0.4]
    assert names["report"].models[1].perplexity > 0
    assert "no-such-model" in capsys.readouterr().out
    assert not (checkout / "build/never.run").exists()
