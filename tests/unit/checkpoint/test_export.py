"""A finished checkpoint in another form: the same model, and files that say what they are."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.tables.export import export_table
from pipeline.export import export, rotate, staged_beside
from pipeline.run_directory.ownership import owned
from schemas.errors import CheckpointError, ConfigError, OwnershipError, StorageFullError
from schemas.request.export import ExportConfig
from schemas.request.groups import NumericsConfig
from tests.contract import Subject
from tests.low_rank import PROMPTS, Checkpoint, make_checkpoint
from tests.unit.checkpoint.conftest import finish, finish_handmade
from workers import reencoding
from workers.checkpoint.own_code import may_run_code
from workers.checkpoint.published import read_compression, read_manifest
from workers.checkpoint.verify import check_files
from workers.storage.keys import OWNER

MIXED = ("plain", "pivoted", "pivoted-columns", "dense")


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Biased matrices in every encoding."""
    made = make_checkpoint(tmp_path_factory.mktemp("biased") / "source", "qwen2", MIXED)
    finish_handmade(made)
    return made


@pytest.fixture
def source(biased: Checkpoint, tmp_path: Path) -> Checkpoint:
    return biased._replace(folder=Path(shutil.copytree(biased.folder, tmp_path / "source")))


def exported(folder: Path, **form: Any) -> Path:
    output = folder.with_name("exported")
    return export(ExportConfig(checkpoint=str(folder), output=output, **form)).path


def stock_config(folder: Path, like: Checkpoint) -> dict[str, Any]:
    """config.json of what transformers' own class loads whole, and which says the same."""
    auto: Any = AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model) is type(like.dense)
    torch.testing.assert_close(model(**PROMPTS).logits, like.logits, atol=2e-5, rtol=1e-5)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("factors", ["plain", "pivoted"])
def test_other_factors_are_the_same_model(source: Checkpoint, factors: str) -> None:
    folder = exported(source.folder, factors=factors)

    again = source._replace(folder=folder).load()
    torch.testing.assert_close(again(**PROMPTS).logits, source.logits, atol=2e-5, rtol=1e-5)
    told = read_compression(folder)
    for row in told.matrices:
        columns = not row.name.endswith(("o_proj", "down_proj"))
        pivoted = "pivoted-columns" if columns else "pivoted"
        assert row.encoding in ("dense", "plain" if factors == "plain" else pivoted)
        layer = again.model.get_submodule(row.name)
        assert (layer.encoding, layer.rank) == (row.encoding, row.rank)
        if factors == "plain":
            assert row.rounding == 0.0  # every value of pivoted factors is one of these, too
        if row.parameters != 1:  # it is stored anew
            stored = sum(p.numel() for n, p in layer.named_parameters() if n.endswith("weight"))
            assert row.parameters == stored
    assert told.exported == "output"
    assert told.method["factors"] == factors
    assert told.parameters_after == sum(p.numel() for p in again.parameters())
    assert check_files(folder, read_manifest(folder), {}).passed
    assert may_run_code(folder, trust_remote_code=False)
    assert (folder / "_SUCCESS").is_file()
    assert "stored in another form" in (folder / "README.md").read_text()


def test_a_checkpoint_with_the_code_of_another_version_gets_that_of_this_one(
    tmp_path: Path,
) -> None:
    made = make_checkpoint(tmp_path / "source", "qwen2", MIXED)
    with (made.folder / "modeling_lowrank.py").open("a") as code:
        code.write("# as it once was\n")
    finish_handmade(made)
    with pytest.raises(CheckpointError, match="svdllm export"):
        may_run_code(made.folder, trust_remote_code=False)
    folder = exported(made.folder, factors="pivoted")
    assert may_run_code(folder, trust_remote_code=False)


def test_what_few_bits_can_hold_is_the_same_model(tmp_path: Path) -> None:
    source, folder = make_checkpoint(tmp_path / "source", "mistral", MIXED), tmp_path / "rotated"
    finish_handmade(source)
    folder.mkdir()
    # Factors of a rank of 32 would be no smaller than these matrices.
    names = [row.name for row in read_compression(source.folder).matrices]
    done = rotate(source.folder, folder, seed=0, stay=["self_attn"])
    rows = read_compression(folder).matrices
    assert done == {"dense": sum(row.parameters != 1 for row in rows)} != {}
    assert "lm_head" in names
    assert {row.name for row in rows if row.parameters != 1} <= {n for n in names if "mlp" in n}
    again = source._replace(folder=folder).load()
    torch.testing.assert_close(again(**PROMPTS).logits, source.logits, atol=2e-5, rtol=1e-5)


def test_pivots_by_rows_everywhere_become_ones_that_processes_can_share(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "source", "llama", ("pivoted",))
    finish_handmade(made)
    assert "model.layers.*.self_attn.q_proj.up" not in made.load().tp_plan
    again = made._replace(folder=exported(made.folder, factors="pivoted")).load()
    assert again.tp_plan["model.layers.*.self_attn.q_proj.up"] == "colwise"
    torch.testing.assert_close(again(**PROMPTS).logits, made.logits, atol=2e-5, rtol=1e-5)


def test_a_matrix_whose_pivots_are_beyond_the_bound_keeps_its_form(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "source", "llama", ("plain",))
    finish_handmade(made, numerics=NumericsConfig(pivot_bound=1e-6))
    output = tmp_path / "exported"
    config = ExportConfig(checkpoint=str(made.folder), output=output, factors="pivoted")
    kept = export(config).kept
    rows = read_compression(output).matrices
    assert kept.keys() == {row.name for row in rows}
    assert all("> 1e-06" in why for why in kept.values())
    assert {row.encoding for row in rows} == {"plain"}


@pytest.mark.parametrize("most", [5 * 10**9, 20_000])
def test_whole_matrices_are_a_stock_model(
    source: Checkpoint, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencoding, "_FILE_BYTES", most)
    folder = exported(source.folder, dense=True)

    assert (len(list(folder.glob("*.safetensors"))) > 1) == (most < 10**6)
    config = stock_config(folder, source)
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert not config.keys() & {"low_rank", "auto_map", "transformers_weights"}
    assert not list(folder.glob("*.py"))
    assert "**no smaller**" in (folder / "README.md").read_text()


NARROW = ("dense",) * 4 + ("pruned-rows", "pruned-rows", "pruned-columns")


@pytest.mark.parametrize("first", ["dense", "pivoted"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_mlps_that_are_alike_stay_narrow(kind: str, first: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "source", kind, (first, *NARROW[1:]))
    finish_handmade(made)
    folder = tmp_path / "exported"
    done = export(ExportConfig(checkpoint=str(made.folder), output=folder, dense=True))
    assert done.narrow
    assert stock_config(folder, made)["intermediate_size"] == 12
    assert made.dense.config.intermediate_size > 12
    assert "a narrower\nmodel of the base's own architecture" in (folder / "README.md").read_text()


def test_mlps_that_differ_are_whole_again(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "source", "llama", (*NARROW, *["dense"] * 7))
    finish_handmade(made)
    folder = tmp_path / "exported"
    done = export(ExportConfig(checkpoint=str(made.folder), output=folder, dense=True))
    assert done.narrow is False
    size = stock_config(folder, made)["intermediate_size"]
    assert size == made.dense.config.intermediate_size
    console = Console(width=200)
    with console.capture() as shown:
        console.print(export_table(done))
    assert "zeros take their place" in shown.get()


@pytest.mark.parametrize("form", [{"dense": True}, {"factors": "plain"}])
def test_parts_of_a_transposed_matrix_find_their_places(
    form: dict[str, Any], tmp_path: Path
) -> None:
    subject = Subject("gpt2", tmp_path)
    folder, rows = subject.compressed("pivoted", 0.3)
    assert subject.spec.split
    assert any(matrix.transposed for matrix in subject.spec.matrices)
    finish(folder, rows)
    tokens = subject.tokens[:2]
    expected = subject.load(folder)(input_ids=tokens).logits
    found = subject.load(exported(folder, **form))(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_what_is_no_finished_checkpoint_is_refused(source: Checkpoint) -> None:
    with (source.folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="not as the manifest says"):
        exported(source.folder, dense=True)
    (source.folder / "_SUCCESS").unlink()
    with pytest.raises(CheckpointError, match="name a checkpoint that is finished"):
        exported(source.folder, dense=True)
    assert [path.name for path in source.folder.parent.iterdir()] == ["source"]


def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFullError, match=r"No space left .* writing out; .* bytes are free"),
        staged_beside(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert {path.name for path in tmp_path.iterdir()} <= {"out.tmp"}


def test_the_folder_of_several_ratios_names_them(tmp_path: Path) -> None:
    (tmp_path / "ratio-0.20").mkdir()
    with pytest.raises(CheckpointError, match=r"name one of ratio-0\.20 below it"):
        read_manifest(tmp_path)


def test_what_a_killed_command_has_left_is_removed(
    source: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it is at work, and nothing else is."""
    left, other = (source.folder.with_name(f"exported.{x}.tmp") for x in ("0123456789ab", "old"))
    for folder in (left, other):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    with owned(source.folder.with_name("exported.tmp") / OWNER, pytest.fail):
        with pytest.raises(OwnershipError, match="is at work in this folder"):
            exported(source.folder, dense=True)
        assert left.exists()
    exported(source.folder, dense=True)
    there = {path.name for path in source.folder.parent.iterdir()}
    assert there == {"source", "exported", other.name}
    assert f"{left}: removed; a command that was killed had left it" in caplog.messages


def test_an_output_that_is_taken_is_refused(source: Checkpoint) -> None:
    taken = source.folder.with_name("exported")
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(ConfigError, match="exists; name another folder, or empty it"):
        exported(source.folder, dense=True)


def test_the_folder_that_one_is_in_can_be_the_output(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output := tmp_path / "output").mkdir()
    monkeypatch.chdir(output)
    config = ExportConfig(checkpoint="../source", output=Path(), factors="plain")
    assert export(config).path == output
    assert (output / "_SUCCESS").is_file()


def test_an_output_below_a_file_is_refused(source: Checkpoint) -> None:
    below = source.folder.with_name("file") / "out"
    below.parent.touch()
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        export(ExportConfig(checkpoint=str(source.folder), output=below, dense=True))


@pytest.mark.parametrize("form", [{}, {"factors": "plain", "dense": True}])
def test_one_form_is_to_be_named(form: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name one form"):
        ExportConfig(checkpoint="x", output=Path("y"), **form)


def test_the_command_says_what_it_wrote(source: Checkpoint) -> None:
    output = source.folder.with_name("exported")
    asked = ["export", str(source.folder), "--output", str(output), "--factors", "plain"]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert f"{read_compression(output).parameters_after:,}" in done.output


def test_an_output_inside_the_checkpoint_is_refused(source: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="is inside the checkpoint"):
        export(ExportConfig(checkpoint=str(source.folder), output=source.folder / "o", dense=True))
    assert not (source.folder / "o").exists()
