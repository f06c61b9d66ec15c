"""`evaluate --tasks`: local tasks of lm-eval on tiny models, without a network."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import collect_env
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.tables.tasks import tasks_table
from pipeline.tasks import evaluate_tasks
from schemas.errors import ConfigError, NumericsError, TextError
from schemas.result.tasks import Score, TaskReport, TaskResult
from tests.models import tiny_model
from tests.tables import shown
from tests.tasks import DOCUMENTS, Models, write_choice, write_written
from workers.evaluation.harness import Harness, Job, run_job
from workers.storage.files import sha256_of


@pytest.fixture(scope="module", autouse=True)
def _no_pip() -> Iterator[None]:
    """lm-eval asks pip for the packages of this machine after every task, which takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", str)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def report(models: Models, results: Path) -> TaskReport:
    samples = results / "samples/all.parquet"
    return evaluate_tasks(models.request(results, "both,texts,written", tasks={"samples": samples}))


def test_plain_lm_eval_says_the_same(models: Models, report: TaskReport) -> None:
    manager = lm_eval.tasks.TaskManager(include_path=str(models.tasks), include_defaults=False)
    for place, folder in enumerate((models.base, models.small)):
        plain = lm_eval.simple_evaluate(
            "hf",
            {"pretrained": str(folder), "dtype": "float32"},
            ["both", "texts", "written"],
            batch_size=8,
            device="cpu",
            task_manager=manager,
        )
        assert plain is not None
        for row in report.rows:
            found: Any = (plain["groups"] | plain["results"])[row.task]
            score = row.scores[place]
            assert score.value == pytest.approx(found[f"{row.metric},{row.filter}"], rel=1e-6)
            stderr = found[f"{row.metric}_stderr,{row.filter}"]
            assert score.stderr == (None if stderr == "N/A" else pytest.approx(stderr))


def test_every_task_has_a_row(report: TaskReport) -> None:
    rows = [(row.task, row.metric, row.documents) for row in report.rows]
    assert rows == [
        ("choice", "acc", DOCUMENTS),
        ("other", "acc", DOCUMENTS),
        ("texts", "byte_perplexity", 6),
        ("written", "exact_match", 6),
        ("both", "acc", 2 * DOCUMENTS),
    ]
    assert [row.higher_is_better for row in report.rows] == [True, True, False, True, True]


def test_differences_are_those_of_the_documents(results: Path, report: TaskReport) -> None:
    rows: list[Any] = pq.read_table(results / "samples/all.parquet").to_pylist()
    scores = [
        torch.tensor([dict(r["scores"])["acc"] for r in rows if (r["model"], r["task"]) == key])
        for key in [(name, "choice") for name in report.models]
    ]
    change = (scores[1] - scores[0]).double()
    found = report.rows[0].difference
    assert found is not None
    assert found.stderr is not None
    assert found.value == pytest.approx(float(change.mean()))
    assert found.stderr == pytest.approx(float(change.std()) / len(change) ** 0.5)
    assert json.loads(rows[0]["doc"])["choices"]
    by_task = {row.task: row.difference for row in report.rows}
    for task in ("texts", "both"):  # no mean over documents
        assert by_task[task] is not None
        assert by_task[task].stderr is None  # type: ignore[union-attr]


def test_what_is_finished_is_not_run_again(
    models: Models, results: Path, report: TaskReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, tuple[str, ...]]] = []

    def run(job: Job, harness: Harness) -> Iterator[TaskResult]:
        ran.append((job.name, job.tasks))
        return run_job(job, harness)

    monkeypatch.setattr("pipeline.tasks.run_job", run)
    again = evaluate_tasks(models.request(results, "choice,written"))
    assert (again.kept, ran) == (4, [])
    assert again.rows == tuple(r for r in report.rows if r.task in ("choice", "written"))
    fewer = evaluate_tasks(models.request(results, tasks={"limit": 5}))
    assert fewer.kept == 0
    assert fewer.rows[0].documents == 5
    assert ran == [(name, ("choice",)) for name in report.models]


def test_several_checkpoints_share_what_is_known_of_tasks_and_base(
    models: Models, results: Path, report: TaskReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Path]()

    def spy(folder: Path, names: list[str]) -> dict[str, str]:
        read.append(folder)
        return sha256_of(folder, names)

    monkeypatch.setattr("workers.evaluation.harness.sha256_of", spy)
    monkeypatch.setattr("pipeline.tasks.Harness", None)  # none is made anew
    request = models.request(results)
    harness = Harness(request.tasks)
    for checkpoint in (models.small, models.base):
        asked = request.model_copy(update={"checkpoint": str(checkpoint)})
        assert evaluate_tasks(asked, harness).kept == 2
    assert read == [models.base, models.small]


def test_a_stopped_evaluation_continues(
    models: Models, tmp_path: Path, report: TaskReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Harness.run

    def stop_at_the_third(self: Harness, lm: Any, name: str, model: str) -> Any:
        if len(list(tmp_path.glob("*.json"))) == 2:
            raise KeyboardInterrupt
        return run(self, lm, name, model)

    request = models.request(tmp_path, "choice,written")
    with monkeypatch.context() as patch:
        patch.setattr(Harness, "run", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(request)
    continued = evaluate_tasks(request)
    assert continued.kept == 2
    assert continued.rows == tuple(r for r in report.rows if r.task in ("choice", "written"))


def test_other_documents_and_other_weights_run_again(models: Models, tmp_path: Path) -> None:
    request = models.request(tmp_path / "results", tasks={"folder": tmp_path / "tasks"})
    write_choice(tmp_path / "tasks")
    assert evaluate_tasks(request).kept == 0
    assert evaluate_tasks(request).kept == 2
    write_choice(tmp_path / "tasks", seed=7)
    assert evaluate_tasks(request).kept == 0
    same = request.model_copy(update={"checkpoint": str(models.base)})
    report = evaluate_tasks(same)
    assert report.kept == 2
    assert report.rows[0].difference == Score(value=0, stderr=0)
    other = tiny_model(tmp_path / "other", seed=2)
    assert evaluate_tasks(request.model_copy(update={"checkpoint": str(other)})).kept == 1


def test_the_same_weights_under_two_names_run_once(models: Models, tmp_path: Path) -> None:
    again = shutil.copytree(models.base, tmp_path / "copy")
    report = evaluate_tasks(models.request(tmp_path / "results", checkpoint=str(again)))
    assert report.models == (str(models.base), str(again))
    assert report.rows[0].difference == Score(value=0, stderr=0)
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_damaged_result_is_computed_again(models: Models, tmp_path: Path) -> None:
    first = evaluate_tasks(models.request(tmp_path, baseline=None))
    [file] = tmp_path.glob("*.json")
    file.write_text("{")
    again = evaluate_tasks(models.request(tmp_path, baseline=None))
    assert (again.kept, again.rows) == (0, first.rows)


def test_the_table_shows_intervals_and_differences(report: TaskReport) -> None:
    said = shown(tasks_table(report))
    rows = {
        cells[1].strip(): cells for line in said.splitlines() if len(cells := line.split("│")) > 5
    }
    score, found = report.rows[0].scores[0], report.rows[0].difference
    assert score.stderr is not None
    assert found is not None
    assert found.stderr is not None
    choice = [cell.strip() for cell in rows["choice"]]
    assert choice[2:5] == ["acc ↑", "24", f"{score.value:.4f} ± {1.96 * score.stderr:.4f}"]
    assert choice[6] == f"{found.value:+.4f} ± {1.96 * found.stderr:.4f}"
    assert "byte_perplexity ↓" in said
    assert "[small]" in said


def test_the_command_writes_the_report(
    models: Models, results: Path, report: TaskReport, text: Path
) -> None:
    file = results / "new" / "report.json"
    arguments = ["evaluate", models.small, "--baseline", models.base, "--device", "cpu"]
    arguments += ["--tasks", "choice,written", "--task-folder", models.tasks, "--results", results]
    arguments += ["--json", file, "--text", text, "--sequence-length", 64, "--windows", 2]
    done = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    found = TaskReport.model_validate_json(file.read_text())
    assert found.kept == 4
    assert found.rows == tuple(r for r in report.rows if r.task in ("choice", "written"))
    assert found.text is not None
    assert len(found.text.models) == 2
    assert "perplexity" in done.output


def test_solved_examples_change_the_question(
    models: Models, tmp_path: Path, report: TaskReport
) -> None:
    [row] = evaluate_tasks(models.request(tmp_path, tasks={"fewshot": 2})).rows
    assert row.fewshot == 2
    assert row.scores != report.rows[0].scores


@pytest.fixture
def few_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lm-eval's own 14,000 tasks only those of one folder are read."""
    few = Path(lm_eval.__file__).parent / "tasks/arc/manager.py"
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(few))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": "choyce"}, r"knows no 'choyce'; near it: .*choice"),
        ({"folder": Path("nowhere")}, r"tasks.folder .*nowhere: no such folder"),
    ],
)
@pytest.mark.usefixtures("few_own")
def test_a_request_that_cannot_work_says_why(
    models: Models, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_tasks(models.request(tmp_path, tasks=fields))


@pytest.mark.usefixtures("few_own")
def test_a_group_may_have_a_task_of_lm_eval(models: Models, tmp_path: Path) -> None:
    (tmp_path / "outer.yaml").write_text("{group: outer, task: [{group: inner}]}")
    (tmp_path / "inner.yaml").write_text("{group: inner, task: [{task: arc_easy}]}")
    with pytest.raises(TextError, match=r"task outer: lm-eval cannot prepare it .*ai2_arc"):
        evaluate_tasks(models.request(tmp_path, "outer", tasks={"folder": tmp_path}))


def test_a_task_that_runs_what_a_model_writes_is_refused(models: Models, tmp_path: Path) -> None:
    write_written(tmp_path, unsafe_code=True)
    with pytest.raises(ConfigError, match=r"task written: lm-eval does not run it .*unsafe"):
        evaluate_tasks(models.request(tmp_path, "written", tasks={"folder": tmp_path}))


def test_documents_that_are_not_there_are_named(models: Models, tmp_path: Path) -> None:
    write_choice(tmp_path).unlink()
    with pytest.raises(TextError, match="task choice: lm-eval cannot prepare it"):
        evaluate_tasks(models.request(tmp_path, tasks={"folder": tmp_path}))


def test_without_lm_eval_the_error_says_how_to_install_it(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'svdllm\[tasks\]'"):
        evaluate_tasks(models.request(tmp_path))


def test_damaged_weights_are_no_answer(models: Models, tmp_path: Path) -> None:
    broken = tiny_model(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    request = models.request(tmp_path / "results", baseline=None)
    with pytest.raises(NumericsError, match="gives a log-likelihood of nan"):
        evaluate_tasks(request.model_copy(update={"checkpoint": str(broken)}))
