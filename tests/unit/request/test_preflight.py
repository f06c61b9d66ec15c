"""What is refused before torch and Ray are loaded, and every message of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from pipeline.request.flags import build, explain
from pipeline.request.preflight import check, look
from schemas.errors import ConfigError, StorageError, TextError
from schemas.request.config import RunConfig
from schemas.run.ranks import require_ranks
from schemas.run.targets import select
from tests.documents import ROOT
from tests.unit.request.conftest import refusal
from workers.model.inspection import inspect
from workers.process.logs import LOG_FORMAT, log, now_about, set_up_logging


def test_what_is_as_it_must_be_is_accepted(request_for: Any, model: Path) -> None:
    base = check(request_for())
    assert base.folder == model.resolve()
    assert base.spec == inspect(model)


def test_a_store_that_refuses_is_a_wrong_request_before_a_run(
    request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", fail)
    config = request_for(model="memory://bucket/base")
    assert "the store did not do it (Forbidden)" in refusal(config, ConfigError)
    with pytest.raises(StorageError):
        look(config)


@pytest.mark.slow
def test_ray_is_not_needed_to_refuse(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.request.preflight import check\n"
        "from schemas.request.config import RunConfig\n"
        f"check(RunConfig(model={str(model)!r}, ratio=0.3, output={str(tmp_path / 'out')!r}))\n"
        "print({'ray'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"set()\n", b"")


# --- places -----------------------------------------------------------------------------------


def test_a_place_without_permission_is_refused(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is asked, not the mode: a superuser may write, but not where nothing is written
    to; here its answer is given for one folder.
    """
    closed = tmp_path / "closed"
    closed.mkdir()
    asked = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and asked(path, mode))
    for fields in (
        {"output": closed / "out"},
        {"output": closed / "new" / "out"},
        {"run_dir": closed},
        {"run_dir": closed / "run"},
    ):
        message = refusal(request_for(**fields), ConfigError)
        assert f"no permission to write in {closed} (read-only, or of another user)" in message
        assert "change it, or name another place" in message


@pytest.mark.parametrize("asked", [{}, {"ratio": (), "budget": {"size": "1MB"}}])
def test_an_output_that_holds_other_files_is_refused(
    asked: dict[str, Any], request_for: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    message = refusal(request_for(**asked), ConfigError)
    assert f"output {tmp_path / 'out'} exists and is no finished checkpoint" in message


def test_a_ratio_is_added_to_others(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "out" / "ratio-0.20").mkdir(parents=True)
    said = refusal(request_for(), ConfigError)
    assert said.endswith("name another folder, or its ratios, too, to add one to ratio-0.20")


def test_a_run_directory_is_a_folder_of_its_own(request_for: Any, tmp_path: Path) -> None:
    """What a run finds there and does not know it may remove."""
    run_dir = tmp_path / "run"
    (run_dir / "outputs").mkdir(parents=True)
    (run_dir / "outputs" / "model.safetensors").write_bytes(b"of another program")
    message = refusal(request_for(run_dir=run_dir), ConfigError)
    assert f"run_dir {run_dir}: holds outputs, but no run.json of a run" in message
    (run_dir / "run.json").write_text("{}")
    check(request_for(run_dir=run_dir))
    (tmp_path / "new" / "owner").mkdir(parents=True)
    (tmp_path / "new" / "owner" / "1.json").write_text("{}")  # of one that ended at once
    (tmp_path / "new" / "progress.json").write_text("{}")
    check(request_for(run_dir=tmp_path / "new"))


def test_a_run_directory_that_is_a_file_is_refused(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(request_for(run_dir=tmp_path / "file"), ConfigError)
    assert f"run_dir {tmp_path / 'file'}: is a file, not a folder" in message


@pytest.mark.parametrize("field", ["output", "run_dir"])
def test_a_place_below_a_file_is_refused(field: str, request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(request_for(**{field: tmp_path / "file" / "out"}), ConfigError)
    assert f"{tmp_path / 'file'} is a file, not a folder; name another place" in message


@pytest.mark.parametrize(
    ("name", "why"), [("x" * 300, "File name too long"), ("a\0b", "holds no NUL character")]
)
def test_a_name_that_the_system_does_not_take_is_refused(
    name: str, why: str, request_for: Any, tmp_path: Path
) -> None:
    assert why in refusal(request_for(output=tmp_path / name / "out"), ConfigError)


def test_a_link_does_not_hide_that_an_output_is_inside_the_model(
    request_for: Any, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(folder)
    for output in (tmp_path / "link" / "out", folder / "x" / ".." / "out"):
        message = refusal(request_for(model=str(folder), output=output), ConfigError)
        assert f"is inside the model {folder}; name another folder" in message
    config = request_for(model=str(folder), run_dir=tmp_path / "link" / "run")
    assert f"is inside the model {folder}; name another --run-dir" in refusal(config, ConfigError)


def test_a_run_directory_inside_the_output_is_refused_however_both_are_named(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(request_for(output=Path("out"), run_dir=tmp_path / "out" / "run"), ConfigError)
    assert "neither may be inside the other" in said


def test_a_link_as_output_stands_for_what_it_names(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert check(request_for()).config.output == tmp_path / "disk"


def test_a_mount_point_is_no_output(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would end with nothing published: no folder can be renamed to one."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    assert "is a link or a mount point" in refusal(request_for(), ConfigError)
    check(request_for(output=tmp_path / "out" / "small"))


# --- disks ------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is missing there: what a stopped run has left is not needed once more."""
    free = 10**5
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    run_dir = tmp_path / "out.run"
    message = refusal(request_for(), ConfigError)
    found = re.match(rf"{run_dir}: the run needs about ([\d,]+) bytes there, 100,000 are", message)
    assert found is not None
    free = int(found[1].replace(",", "")) - 100
    run_dir.mkdir()
    (run_dir / "run.json").write_bytes(bytes(99))
    assert f"free {1}, or name another" in refusal(request_for(), ConfigError)
    (run_dir / "run.json").write_bytes(bytes(100))
    check(request_for())


@pytest.mark.parametrize("asked", [{}, {"ratio": (), "budget": {"kl": 0.1}}])
def test_a_run_that_is_done_needs_no_disk(
    asked: dict[str, Any],
    request_for: Any,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"evaluation": {"text": str(text)}} | asked
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "bytes there" in refusal(request_for(**asked), ConfigError)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_SUCCESS").write_text("")
    check(request_for(**asked))


# --- ratios -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio",
    [
        *("abc", "nan", "1", "-0.1", "0.2,,0.4", "inf", "", ",", "1e400", "0.2;0.4", "20%"),
        *(20, [0.2, 1.0], [], None),
    ],
)
def test_a_ratio_that_is_none_is_refused_with_what_one_is(ratio: object) -> None:
    flags = {"model": "m", "output": "o", "settings": [f"ratio={json.dumps(ratio)}"]}
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of pydantic; its words are checked)
        build(RunConfig, flags)
    line = explain(caught.value)[0]  # type: ignore[arg-type]
    if not ratio and ratio != "":
        assert line.startswith("ratio: not given; use --ratio")
    else:
        assert line.startswith("ratio")
        assert "the fraction that is removed, from 0 to below 1, as 0.2 or 0.2,0.4" in line


@pytest.mark.parametrize(
    ("method", "least", "low"),
    [
        ("two-sided", "rank 1", 0.8),
        ("svd-llm-v2", "rank 1", 0.8),
        ("svd-llm", "rank 1", 0.8),
        ("neurons", "the fewest neurons", 0.5),
    ],
)
def test_the_highest_ratio_that_is_named_is_the_highest(
    method: str, least: str, low: float, request_for: Any, model: Path
) -> None:
    spec = inspect(model)
    config = request_for(method=method, ratio=0.999)
    message = refusal(config, ConfigError)
    assert message.startswith("ratio 0.999: ")
    assert least in message
    highest = float(message.removesuffix(" is the most here").rpartition(" ")[2])
    assert low < highest < 0.999
    require_ranks(request_for(method=method, ratio=highest), spec)
    with pytest.raises(ConfigError):
        require_ranks(request_for(method=method, ratio=highest + 1e-3), spec)


def test_neurons_alone_are_refused_if_none_could_go(request_for: Any, model: Path) -> None:
    attention = {"only": "self_attn.*"}
    message = refusal(request_for(method="neurons", targets=attention), ConfigError)
    assert "removes nothing but neurons, and none can go from layers.0.self_attn.q_proj" in message
    check(request_for(method="neurons", targets=attention, ratio=0.0))
    by_kl = request_for(method="neurons", targets=attention, ratio=(), budget={"kl": 0.1})
    with pytest.raises(ConfigError, match="none can go"):
        require_ranks(by_kl, select(by_kl, inspect(model)))


def test_a_matrix_that_would_lose_its_rank_is_named(request_for: Any, model: Path) -> None:
    config = request_for(method="svd-llm", ratio=(0.2, 0.92))
    expected = "layers.0.self_attn.k_proj (16 x 32) may keep 40 parameters, but rank 1 takes 48"
    assert expected in refusal(config, ConfigError)


def test_a_ratio_that_is_given_beside_a_budget_leaves_a_rank(request_for: Any) -> None:
    config = request_for(ratio=(), budget={"parameters": 10**9}, ratio_by={"k_proj": 0.99})
    assert "ratio 0.99: rank 1" in refusal(config, ConfigError)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["seed=[", "seed=2024-99-99", "seed=" + "[" * 600])
def test_a_setting_that_is_no_yaml_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set .*: not YAML .*; correct it"):
        build(RunConfig, {"settings": [setting]})
    (tmp_path / "c.yaml").write_text(setting.replace("=", ": "))
    with pytest.raises(ConfigError, match=r"c\.yaml: not YAML .*; correct it"):
        build(RunConfig, {"config": tmp_path / "c.yaml"})


def test_a_refusal_is_logged_under_its_own_run(
    request_for: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(LOG_FORMAT, "json")
    set_up_logging()
    now_about(run="another")
    with pytest.raises(TextError):
        check(request_for(text=tmp_path / "none.txt"))
    log.error("refused")
    assert json.loads(capsys.readouterr().err)["run"] == str(request_for().run_folder)
