"""The tasks that need no download."""

from pathlib import Path

from benchmarks.tasks import TASKS, write_tasks
from schemas.request.evaluation import TasksConfig
from workers.evaluation.harness import Harness


def test_they_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_tasks(tmp_path / folder)
    for path in sorted((tmp_path / "one").glob("*.jsonl")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert len(path.read_text().splitlines()) >= 100


def test_lm_eval_reads_them_all(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    harness = Harness(TasksConfig(names=("offline",), folder=tmp_path))
    assert set(harness.tasks) == set(TASKS)
    for document in harness.tasks["addition"].eval_docs:
        a, _, b, _ = document["query"].split()
        assert document["choices"][document["gold"]] == str(int(a) + int(b))
    for document in harness.tasks["copying"].eval_docs:
        *words, last = document["query"].split(), document["target"]
        assert words[0][:11] == words[0][12:]
        assert words[0][11] == last
