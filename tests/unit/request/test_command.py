"""A configuration as a command line, and back."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import pipeline.compress
import pipeline.request.preflight
from pipeline.cli.app import app
from pipeline.request.flags import build, command_of, explain
from schemas.errors import ConfigError
from schemas.request.comparison import ComparisonConfig
from schemas.request.config import RunConfig

ASKED: dict[str, dict[str, Any]] = {
    "nothing else": {},
    "ratios": {"ratio": (0.2, 0.45, 1 / 3), "seed": 7, "revision": "main"},
    "a size": {"ratio": None, "budget": {"size": 12 * 10**9}},
    "a size in bits": {"ratio": None, "budget": {"size": 6 * 10**9, "scheme": "W8A16"}},
    "a number of parameters": {"ratio": None, "budget": {"parameters": 5 * 10**9}},
    "an increase": {"ratio": None, "budget": {"perplexity": 0.05, "tolerance": 0.01}},
    "a divergence": {"ratio": None, "budget": {"kl": 0.1, "trials": 3}},
    "a method": {"method": "svd-llm"},
    "no removal of neurons": {"allocation": {"method": "loss-aware-ranks"}},
    "neurons that fire more": {"numerics": {"neuron_floor": 0.1}},
    "a least": {"allocation": {"min_ratio": 0.3}},
    "a method but for one part": {"method": "svd-llm", "factors": "pivoted"},
    "parts": {"truncation": "input-only", "allocation": {"method": "uniform"}, "factors": "plain"},
    "a bound": {"method": "svd-llm-v2", "allocation": {"max_ratio": 0.75, "rank_multiple": 16}},
    "targets": {
        "targets": {
            "only": ("self_attn.*", "mlp.*"),
            "ignore": ("v_proj", "layers.1.*"),
            "min_features": 1,
            "skip_first": 1,
            "skip_last": 2,
        },
        "ratio_by": {"mlp.down_proj": 0.1, "layers.2.*": 0.0},
        "any_architecture": True,
        "dequantize": True,
    },
    "a text": {
        "calibration": {
            "text": "my text's $HOME.txt",
            "samples": 3,
            "sequence_length": 64,
            "gradient_samples": 4,
            "gradient_length": 65,
            "micro_batch": 2,
            "segments": 1,
        },
        "evaluation": {"text": "none", "sequence_length": 512, "windows": 5},
    },
    "a recovery": {
        "refinement": {
            "enabled": True,
            "windows": 3,
            "passes": 1,
            "batch": 2,
            "learning_rate": 1e-5,
        },
        "recovery": {
            "enabled": True,
            "text": ("my text's $HOME.txt:0.5", "c4:2"),
            "tokens": 10_000,
            "sequence_length": 64,
            "batch": 2,
            "micro_batch": 1,
            "learning_rate": 3e-5,
            "warmup": 0.0,
            "clip": 0.5,
            "objective": "hidden",
            "held_out": 2,
            "evaluations": 3,
            "patience": 1,
            "checkpointing": False,
            "offload": False,
            "norms": True,
        },
    },
    "a recovery by updates": {
        "recovery": {
            "method": "svd-llm",
            "order": "down-first",
            "lora_rank": 4,
            "learning_rate": 5e-5,  # the usual one, but not that of the method
        },
    },
    "a method without its training": {"recovery": {"method": "svd-llm", "enabled": False}},
    "rounds": {"rounds": 3, "ratio": 0.8, "recovery": {"enabled": True}},
    "factors that are there": {"adopt": "/out/cut", "recovery": {"enabled": True}},
    "numbers": {
        "numerics": {
            "dtype": "bfloat16",
            "threads": 2,
            "shrinkage": 1e-05,
            "input_shrinkage": 0.3,
            "pivot_bound": 1e20,
        }
    },
    "a cluster": {
        "cluster": {
            "workers": 3,
            "shard_layers": 2,
            "replicas": 2,
            "keep_bases": False,
            "device": "cpu",
            "address": "ray://head:10001",
            "storage_read": 12 * 10**9,
            "storage_write": 1,
            "item_timeout_s": 0.5,
            "attempts": 1,
        },
        "on_failure": "keep_dense",
    },
    "places": {"run_dir": "/runs/of mine", "output": "s3://bucket/out", "model": "s3://b/base"},
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_the_command_line_asks_for_the_same(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = RunConfig.model_validate({"model": "org/m", "output": "out", "ratio": 0.2} | fields)
    found: list[RunConfig] = []

    def stop(config: RunConfig) -> None:
        found.append(config)
        raise ConfigError("that is all that was asked")

    monkeypatch.setattr(pipeline.request.preflight, "check", stop)
    program, *words = command_of(asked)
    assert CliRunner().invoke(app, words).exit_code == ConfigError.exit_code
    assert program == "svdllm"
    assert found == [asked]


def test_every_setting_is_tried() -> None:
    """So that a setting that is added has to come back from its command line, too."""

    def settings(schema: Any, given: dict[str, Any], prefix: str = "") -> set[str]:
        missing = set()
        for name, field in schema.model_fields.items():
            inner = getattr(field.annotation, "model_fields", None)
            if inner is not None:
                parts = [fields.get(name, {}) for fields in given.values()]
                merged = {str(at): part for at, part in enumerate(parts)}
                missing |= settings(field.annotation, merged, f"{prefix}{name}.")
            elif not any(name in fields for fields in given.values()):
                missing.add(f"{prefix}{name}")
        return missing

    assert settings(RunConfig, ASKED) == set()


def test_what_is_default_is_left_out() -> None:
    asked = RunConfig(
        model="org/m", output=Path("/out"), ratio=(0.2,), run_dir=Path("/out.run"), seed=0
    )
    assert command_of(asked) == (
        *("svdllm", "compress", "--model", "org/m", "--output", "/out", "--ratio", "0.2"),
    )


def test_a_group_whose_lines_are_all_comments_takes_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\noutput: o\nratio: 0.2\ncalibration:\n#  samples: 64\n")
    flags = {"config": path, "settings": ["calibration.samples=7"]}
    assert build(RunConfig, flags).calibration.samples == 7


def test_what_is_refused_is_not_missing_as_well() -> None:
    asked = {"model": "m", "output": "o", "ratios": "0.2", "evaluate": "a.txt", "methods": "pca"}
    with pytest.raises(ValidationError) as caught:
        ComparisonConfig.model_validate(asked)
    [complaint] = explain(caught.value)
    assert "'pca'" in complaint
