"""What a request for tasks and texts may ask for."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.request.evaluation import PAPER_TASKS, EvaluationConfig, TasksConfig


def test_the_papers_tasks_have_one_name() -> None:
    config = TasksConfig(names=("gsm8k", "paper", "mmlu"))
    assert config.asked == ("gsm8k", *[t for t in PAPER_TASKS if t != "gsm8k"], "mmlu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": {"limit": 5}}, "limit: for tasks only; add --tasks"),
        ({"tasks": {"names": "a", "batch_size": 0}}, "batch_size 0: 1 or more, or auto"),
        ({"tasks": {"names": "a"}, "streamed": True}, "scores a text only"),
        ({"device_map": "auto", "streamed": True}, "scores a text only"),
        ({"revision": "v2"}, "revision v2: of a baseline; add --baseline"),
        ({"revision": "v2", "baseline": "x"}, "baseline and checkpoint have one name, x"),
        ({"workers": 2}, "workers: for a streamed evaluation only"),
        ({"shard_layers": 2, "work_dir": "."}, "shard_layers, work_dir: for a streamed"),
        ({"streamed": True, "sample_tokens": 48}, "sample_tokens: a streamed evaluation"),
        (
            {"tasks": {"names": "a"}, "windows": 8, "sample_prompt": "I"},
            "windows, sample_prompt: for",
        ),
        ({"device_map": "auto", "device": "cpu"}, "device cpu: device_map lays"),
        ({"streamed": True, "trust_remote_code": True}, "runs no code of a checkpoint"),
    ],
)
def test_fields_fit_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(checkpoint="x", **wrong)


def test_a_text_beside_tasks_counts_only_if_it_is_given() -> None:
    assert EvaluationConfig(checkpoint="x").scores_text
    assert not EvaluationConfig(checkpoint="x", tasks=TasksConfig(names=("a",))).scores_text
    asked = EvaluationConfig(checkpoint="x", tasks=TasksConfig(names=("a",)), text="wikitext2")
    assert asked.scores_text
