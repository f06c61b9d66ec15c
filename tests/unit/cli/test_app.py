"""Exit codes and messages of the command line, without starting Ray."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.files import require_files
from pipeline.cli.nightly import NOTHING_WAITS
from schemas.errors import ConfigError
from schemas.request.budget import OPTIONS
from tests.documents import ROOT
from tests.loads import load_here
from tests.tables import printed
from workers.model.kinds import TESTED
from workers.process.logs import log

TOO_MANY = "1000000"


@pytest.fixture(autouse=True)
def _progress(caplog: pytest.LogCaptureFixture) -> None:
    """Let caplog see all that the command logs."""
    caplog.set_level(logging.INFO, logger=log.name)


def run(*arguments: object) -> int:
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code


def test_missing_settings_are_named_with_their_flags(caplog: pytest.LogCaptureFixture) -> None:
    assert run("compress", "--seed", 1) == 2
    for flag in ("--model", "--ratio", "--output"):
        assert flag in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "1.5"), "ratio.0 = '1.5': Input should be less than 1"),
        (("--ratio", "nan"), "finite number"),
        (("--ratio", "0.2,x"), "ratio.1 = 'x'"),
        (("--ratio", "0.2", "--set", "foo.bar=1"), "foo: no such setting"),
        (("--ratio", "0.2", "--set", "=3"), "not of the form a.b=value"),
        (("--ratio", "0.2", "--set", "calibration=3"), "a group of settings; name one, as cal"),
        (("--ratio", "0.2", "--output", ""), "output = '': empty; name a folder or a URL"),
        (("--ratio", "0.2", "--set", "nonsense"), "not of the form a.b=value"),
        (("--ratio", "0.2", "--calibration-samples", "0"), "calibration.samples = 0"),
        (("--ratio", "0.2", "--config", "absent.yaml"), "--config absent.yaml"),
        (("--ratio", "0.2", "--gradient-samples", "0"), "needs gradients"),
        (
            ("--ratio", "0.2", "--truncation", "fisher", "--allocation", "svd-llm-v2"),
            "measures nats",
        ),
        (("--ratio", "0.2", "--run-dir", "out/run"), "neither may be inside"),
    ],
)
def test_a_wrong_request_is_refused(
    arguments: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("compress", "--model", "m", "--output", "out", *arguments) == 2
    assert message in caplog.text


def test_too_little_text_is_refused_before_ray_starts(
    model: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ("--calibration", text, "--calibration-samples", TOO_MANY, "--gradient-samples", 1)
    output = tmp_path / "out"
    assert run("compress", "--model", model, "--ratio", 0.2, "--output", output, *asked) == 2
    assert f"{TOO_MANY} are asked for" in caplog.text
    assert not output.exists()


def test_an_output_that_is_not_ours_is_refused(
    model: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    asked = ("--calibration", text, "--ratio", 0.2)
    assert run("compress", "--model", model, "--output", tmp_path, *asked) == 2
    assert "no finished checkpoint of this program" in caplog.text
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_plan_counts_parameters(model: Path) -> None:
    result = CliRunner().invoke(
        app, ["plan", "--model", str(model), "--ratio", "0.25,0.5", "--workers", "2", "--json"]
    )
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert [shard["start"] for shard in plan["shards"]] == [0, 1]
    assert [ratio["targeted_parameters"] for ratio in plan["ratios"]] == [
        plan["targeted_parameters"] * 3 // 4,
        plan["targeted_parameters"] // 2,
    ]
    kinds = plan["kinds"]
    assert plan["targeted_parameters"] == sum(
        kind["count"] * kind["out_features"] * kind["in_features"] for kind in kinds
    )


def test_a_choice_is_shown_before_anything_is_cut(model: Path) -> None:
    """Of what is not in all layers, the table says in how many; the head is in none."""
    chosen = ("--targets", "o_proj,lm_head", "--ignore", "layers.0.*")
    result = CliRunner().invoke(app, ["architectures", "--model", str(model), *chosen])
    assert "self_attn: o_proj (1 of 2" in result.output
    assert re.search(r"lm_head +│", result.output)
    assert "self_attn.q_proj" in result.output


def test_without_a_model_the_tested_kinds_are_listed() -> None:
    result = CliRunner().invoke(app, ["architectures"])
    assert result.output.split() == TESTED


def test_a_choice_is_of_one_model(caplog: pytest.LogCaptureFixture) -> None:
    assert run("architectures", "--targets", "o_proj") == 2
    assert "name it with --model" in caplog.text


@pytest.mark.parametrize("command", ["verify", "status", "catalog", "report", "evaluate", "bench"])
def test_a_url_without_a_bucket_is_refused(command: str, caplog: pytest.LogCaptureFixture) -> None:
    assert run(command, "s3://") == 2
    assert "'s3://' names no bucket or folder; write it like s3://bucket/prefix" in caplog.text


@pytest.mark.parametrize("command", ["verify", "status"])
def test_a_folder_of_another_kind_is_refused(
    command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(command, tmp_path) == 2
    assert str(tmp_path) in caplog.text


def test_flags_override_the_file_and_set_overrides_flags(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("ratio: 0.1\nmethod: svd-llm\nseed: 7\n")
    asked = ("--model", model, "--config", path, "--ratio", "0.5", "--set", "ratio=0.25", "--json")
    result = CliRunner().invoke(app, ["plan", *map(str, asked)])
    assert result.exit_code == 0, caplog.text
    assert [ratio["ratio"] for ratio in json.loads(result.stdout)["ratios"]] == [0.25]


def test_nightly_takes_every_flag_of_compress() -> None:
    names = {}
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        names[command.name] = {flag for one in command.params for flag in one.opts}
    budgets = set(OPTIONS.values())  # a night has the ratio of its own
    assert names["compress"] - names["nightly"] == {"--model"} | budgets
    assert {"--watch", "--max", "--gate", "--keep", "--retry"} <= names["nightly"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("compress", {"OUTPUT.run", "two-sided", "wikitext2", "256", "2048", "every GPU"}),
        ("nightly", {"PREFIX/runs", "two-sided", "no gate", "newest", "3"}),
        ("plan", {"this host's CPU", "8, or all"}),
        ("evaluate", {"wikitext2", "float32", "what fits"}),
        ("bench", {"1,8", "512", "bfloat16", "every core"}),
    ],
)
def test_help_tells_the_defaults(command: str, told: set[str]) -> None:
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert {one for one in told if f"[default: ({one}" in said} == told


def test_an_idle_night_loads_neither_torch_nor_ray(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pipeline.cli.app import app\n"
        f"asked = ['--watch', {str(tmp_path / 'source')!r}, '--ratio', '0.2,0.4', '--max', '2']\n"
        f"asked += ['--output', {str(tmp_path / 'out')!r}, '--calibration', {str(text)!r}]\n"
        "done = CliRunner().invoke(app, ['nightly', *asked])\n"
        "assert 'nothing to do' in done.output, done.output\n"
        "looked = CliRunner().invoke(app, ['nightly', '--look', *asked])\n"
        "print(done.exit_code, looked.exit_code, {'torch', 'ray'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"0 {NOTHING_WAITS} set()\n", done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "watch: not given; use --watch"),
        (("--watch", "m", "--gate", "much"), "gate.perplexity = 'much'"),
        (("--watch", "m", "--gate", "5"), "gate.perplexity = '5': that allows more than twice"),
        (("--watch", "m", "--set", "gate.perplexity=2"), "write it in %, as 5%"),
        (("--watch", "m", "--gate", "5%", "--calibration", "a.txt"), "no text to evaluate on"),
        (("--watch", "m", "--max", "0"), "max = 0"),
        (("--watch", "out"), "is what is watched"),
        (("--watch", "absent"), "'absent': no such folder"),
        (("--watch", "m", "--set", "model=x"), "model: no such setting"),
    ],
)
def test_a_wrong_night_is_refused(
    arguments: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("nightly", "--output", "out", "--ratio", "0.2", *arguments) == 2
    assert message in caplog.text


def test_a_catalogue_that_is_not_there_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("catalog", tmp_path) == 2
    assert "no catalogue there" in caplog.text


def test_the_folder_of_several_ratios_is_not_evaluated(
    tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out" / "ratio-0.20").mkdir(parents=True)
    asked = ["evaluate", str(tmp_path / "out"), "--text", str(text)]
    assert CliRunner().invoke(app, asked).exit_code == 2
    assert "no config.json, so no checkpoint" in caplog.text


def test_a_checkpoint_is_quantised_and_its_figures_are_written_for_a_card(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_here(monkeypatch)
    done = printed("quantize", model, "--scheme", "W8A16", "--output", tmp_path / "small")
    assert "W8A16, round to nearest" in done
    linears = re.findall(r"(32|a whole row) │ +(\d+) │", done)
    assert linears == [("32", "12"), ("a whole row", "2")]
    file, asked = tmp_path / "new" / "index.yaml", ("--sequence-length", 64, "--windows", 2)
    shown = printed("evaluate", model, "--text", text, *asked, "--model-index", file)
    [found] = yaml.safe_load(file.read_text())["model-index"]
    [entry] = found["results"]
    assert found["name"] == model.name
    assert f"{entry['metrics'][0]['value']:.2f}" in shown


@pytest.mark.parametrize("command", [("evaluate", "--text", "t.txt"), ("bench",)])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    command: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    name, *rest = command
    for place, why in ((tmp_path / "file/a.json", "is a file"), (tmp_path, "name a file")):
        caplog.clear()
        assert run(name, tmp_path / "no-model", *rest, "--json", place) == 2
        assert why in caplog.text


def test_a_file_that_is_there_may_be_written_whatever_its_folder_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, closed = tmp_path / "stdout", tmp_path / "closed"
    file.touch()
    closed.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path == file)
    require_files(file, None)
    with pytest.raises(ConfigError, match="closed: no permission to write it"):
        require_files(closed)
    with pytest.raises(ConfigError, match="no permission to write in"):
        require_files(tmp_path / "new")
