"""`svdllm report`: one run made anew, several side by side."""

import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.report.compare import comparison, terminal_table
from pipeline.report.page import render_report
from pipeline.report.read import Reported, read_reported
from schemas.errors import ConfigError
from schemas.location import Location, Url, locate
from schemas.request.methods import METHODS
from schemas.result.evaluation import EvaluationReport
from tests import reports
from tests.unit.report.test_report import Document, drawings

ROWS = reports.matrices(2)


def run(place: str, after: float | None, ratio: float = 0.2, **fields: Any) -> Reported:
    """A checkpoint of some perplexity; None: it was not evaluated."""
    done = reports.compression(ROWS, ratio=ratio, removed=ratio, **fields)
    evaluated = None if after is None else reports.evaluation(after=after)
    return Reported(Path(place), done, evaluated, reports.facts(ROWS))


def written(folder: Path, evaluation: EvaluationReport | None = None) -> Path:
    """A checkpoint's folder, as far as a report needs it."""
    folder.mkdir(parents=True)
    (folder / "compression.json").write_text(reports.compression(ROWS).model_dump_json())
    (folder / "report.json").write_text(reports.facts(ROWS).model_dump_json())
    if evaluation:
        (folder / "evaluation.json").write_text(evaluation.model_dump_json())
    (folder / "_SUCCESS").write_text("")
    return folder


def test_a_curve_has_a_line_a_method_that_starts_at_the_base() -> None:
    papers = {"preset": "svd-llm"} | METHODS["svd-llm"]
    runs = [
        run("b", 46.81, ratio=0.4),
        run("a", 25.9),
        run("c", 68.33, method=papers),
    ]
    text = comparison(runs, Path("report.html"))
    document = Document(text)
    [drawing] = drawings(text)
    lines = [e for e in drawing if e.tag == "polyline"]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 2]
    said = "two-sided: 22.59 at 0 %, 25.90 at 20 %, 46.81 at 40 %. SVD-LLM (W): 22.59 at 0 %"
    assert said in drawing.attrib["aria-label"].replace("\xa0", " ")
    assert "3 runs of Tiny-1B" in "".join(document.text)
    assert [a["href"] for a in document.of("a")[1:]] == [f"{n}/report.html" for n in "bac"]


def test_perplexities_of_different_texts_are_told_apart() -> None:
    text = Path(reports.evaluation().text).name
    other = reports.evaluation(after=30.0).model_copy(update={"text": f"another/{text}"})
    runs = [run("a", 25.9), run("b", None)._replace(evaluation=other)]
    text = comparison(runs, Path("report.html"))
    assert "cannot be compared" in text
    [drawing] = drawings(text)
    assert len([e for e in drawing if e.tag == "polyline"]) == 2


def test_a_text_that_has_changed_is_another_one() -> None:
    one, other = (
        reports.evaluation(after=after).model_copy(update={"text_sha256": letter * 64})
        for after, letter in ((25.9, "a"), (40.0, "b"))
    )
    runs = [run("a", None)._replace(evaluation=one), run("b", None)._replace(evaluation=other)]
    text = comparison(runs, Path("report.html"))
    assert "cannot be compared" in text
    assert {"SHA-256 aaaaaaaa", "SHA-256 bbbbbbbb"} <= set(re.findall(r"SHA-256 \w{8}", text))
    [drawing] = drawings(text)
    assert len([e for e in drawing if e.tag == "polyline"]) == 2


def test_a_folder_with_any_name_has_a_link() -> None:
    named = os.fsdecode(b"mod\xe8le")
    assert 'href="mod%E8le/report.html"' in comparison([run(named, 25.9)], Path("report.html"))


def test_the_page_of_a_checkpoint_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = written(tmp_path / "a"), written(tmp_path / "b")
    (folder / "manifest.json").write_text("{}")
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(app, ["report", ".", str(other)]).exit_code == 2
    assert "the checkpoint's own page" in caplog.text
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("out/a/x", "out/b/y"), ("x", "y")),
        (("out/a/x", "out/b/x"), ("a/x", "b/x")),
        (("out/x", Url("s3://bucket/x")), ("out/x", "bucket/x")),
        ((".",), ("here",)),
    ],
)
def test_runs_are_called_by_what_tells_them_apart(
    places: tuple[Location, ...],
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    runs = [run(str(place), 25.9)._replace(place=locate(place)) for place in places]
    assert [str(column.header) for column in terminal_table(runs).columns[1:]] == [*names]
    text = comparison(runs, Path("report.html"))
    assert all(f">{name}: 25.90<" in text for name in names)


def test_runs_that_were_not_evaluated_are_named_and_have_no_curve() -> None:
    text = comparison([run("one", None), run("other", None)], Path("report.html"))
    assert drawings(text) == []
    assert "Not evaluated: one, other." in text


def test_links_go_from_the_page_to_folders_only() -> None:
    hostile = run("/runs/javascript:alert(1)/a b<", 25.9)
    stored = run("x", 26.0)._replace(place=Url("s3://bucket/out"))
    document = Document(comparison([hostile, stored], Path("/pages/all.html")))
    links = [a["href"] for a in document.of("a")]
    assert links == ["#main", "../runs/javascript%3Aalert%281%29/a%20b%3C/report.html"]


def test_hostile_names_are_text() -> None:
    name = "<script>alert(1)</script>\x1b[31m"
    runs = [run(name, 25.9, model=f"org/{name}"), run("b", 30.0, model=name)]
    text = comparison(runs, Path("report.html"))
    assert not Document(text).of("script")
    assert "\x1b" not in text
    console = Console(width=200, file=io.StringIO())
    with console.capture() as printed:
        console.print(terminal_table(runs))
    assert "\x1b" not in printed.get()


def test_one_run_is_its_own_report_again(tmp_path: Path) -> None:
    evaluation = reports.evaluation()
    folder = written(tmp_path / "out", evaluation)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(page)])
    assert done.exit_code == 0, done.output
    assert re.search(r"perplexity\W+22.59 → 25.90", done.output)
    again = render_report(reports.compression(ROWS), evaluation, reports.facts(ROWS))
    assert page.read_text(encoding="utf-8") == again


def test_several_are_compared(tmp_path: Path) -> None:
    folders = [str(written(tmp_path / name, reports.evaluation())) for name in ("a", "b")]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", *folders, "--output", str(page)])
    assert done.exit_code == 0, done.output
    assert "2 runs of Tiny-1B" in page.read_text(encoding="utf-8")


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compression\.json: .*svdllm compress"):
        read_reported([str(tmp_path / "nothing")])
    folder = written(tmp_path / "damaged")
    (folder / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"report\.json: damaged, or written by another version"):
        read_reported([str(folder)])
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(tmp_path / "page")])
    assert done.exit_code == 2
    assert not (tmp_path / "page").exists()


def test_what_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "checkpoint")
    path = folder / "compression.json"
    text, changed = re.subn(r'"predicted_loss": ?[^,]+', '"predicted_loss": NaN', path.read_text())
    assert changed
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"compression\.json: damaged"):
        read_reported([str(folder)])
