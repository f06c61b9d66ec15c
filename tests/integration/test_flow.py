"""From a base checkpoint to compressed ones, and whether they say the truth."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from pipeline.compress import compress
from pipeline.report.page import render_report
from pipeline.report.read import read_reported
from pipeline.request.again import at_ratios
from schemas.request.export import ExportConfig
from schemas.result.manifest import Manifest, OutputResult
from schemas.result.report import ReportFacts
from tests.integration.conftest import Reference
from tests.integration.support import (
    KINDS,
    ask,
    file_sums,
    headers,
    item_attempts,
    read_compression,
    weight_sums,
)
from tests.items import file_of, local
from tests.models import tiny_model, tiny_tokenizer
from tests.prose import prose
from workers.evaluation.perplexity import perplexity
from workers.model.inspection import inspect
from workers.model.loading import load_model
from workers.storage.store import Store

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},  # q, k and v have biases
}
RATIOS = (0.0, 0.2, 0.5)
PLOTS = ("layers", "ranks", "spectra", "losses", "stages")
BIAS = {
    "dense": "dense.bias",
    "plain": "up.bias",
    "pivoted": "offset",
    "pivoted-columns": "up.bias",
}
ITEM_BYTES = {"F32": 4, "I64": 8}
CHECKS = {
    "files and SHA-256",
    "names and shapes on the meta device",
    "refuses to load without trust_remote_code",
    "tokenizer loads without trust_remote_code",
    "loads with plain transformers",
    "stored dtype kept",
    "finite loss",
    "neither cache nor padding changes a token",
    "save_pretrained round trip",
}


class Flow(NamedTuple):
    """One run of one family."""

    base: Path
    base_sums: dict[str, str]
    run_dir: Path
    outputs: tuple[OutputResult, ...]


@pytest.fixture(scope="module", params=FAMILIES)
def flow(
    request: pytest.FixtureRequest,
    local_ray: None,
    text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Flow:
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    base = tiny_model(folder / "base", family, **FAMILIES[family])
    before = file_sums(base)
    config = ask(base, text, folder / "output", ratio=RATIOS)
    return Flow(base, before, local(config.run_folder), compress(config).outputs)


def test_every_check_passes(flow: Flow) -> None:
    assert tuple(output.ratio for output in flow.outputs) == RATIOS
    for output in flow.outputs:
        assert {check.name for check in output.checks} >= CHECKS
        assert all(check.passed for check in output.checks)
        assert (local(output.path) / "_SUCCESS").is_file()


def test_the_base_is_not_touched(flow: Flow) -> None:
    assert file_sums(flow.base) == flow.base_sums


def test_one_calibration_serves_every_ratio(flow: Flow) -> None:
    run = json.loads((flow.run_dir / "run.json").read_text())
    moments = item_attempts(flow.run_dir, "moments")
    bases = item_attempts(flow.run_dir, "bases")
    spectra = item_attempts(flow.run_dir, "spectra")
    assert len(moments) == sum(run["taps"].values())
    assert len(bases) == len(spectra) == run["matrices"] == len(inspect(flow.base).matrices)
    assert max(written(flow.run_dir, "moments", "bases", "spectra")) < min(
        written(flow.run_dir, "factors")
    )


def written(run_dir: Path, *kinds: str) -> list[int]:
    """When the items of some kinds were written, in nanoseconds."""
    store = Store(run_dir)
    return [file_of(store, key).stat().st_mtime_ns for key in item_attempts(run_dir, *kinds)]


def test_the_rows_are_what_is_on_disk(flow: Flow) -> None:
    spec = inspect(flow.base)
    base = {name: math.prod(shape) for name, (_, shape) in headers(flow.base).items()}
    targeted = sum(base[f"model.{matrix.name}.weight"] for matrix in spec.matrices)
    for output in flow.outputs:
        done = read_compression(output)
        stored = headers(local(output.path))
        counted = {
            row.name: sum(
                math.prod(stored[name][1])
                for part in ("dense", "down", "up")
                if (name := f"model.{row.name}.{part}.weight") in stored
            )
            for row in done.matrices
        }
        assert [row.name for row in done.matrices] == [matrix.name for matrix in spec.matrices]
        assert counted == {row.name: row.parameters for row in done.matrices}
        assert sum(counted.values()) == done.targeted_after
        assert done.targeted_before == targeted
        assert done.targeted_after <= (1 - output.ratio) * targeted
        assert done.removed == 1 - done.targeted_after / targeted
        assert done.parameters_before == sum(base.values())
        orders = [name for name in stored if name.endswith(".order")]
        assert {stored[name][0] for name in orders} <= {"I64"}
        assert done.parameters_after == sum(
            math.prod(shape) for name, (_, shape) in stored.items() if name not in orders
        )
        assert done.bytes_after == sum(
            ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in stored.values()
        )


def test_every_row_has_its_tensors(flow: Flow) -> None:
    biased = {matrix.name for matrix in inspect(flow.base).matrices if matrix.bias}
    for output in flow.outputs:
        stored = {name: shape for name, (_, shape) in headers(local(output.path)).items()}
        for row in read_compression(output).matrices:
            m, n = row.shape
            k = row.rank or 0
            owner = f"model.{row.name}"
            encodings: dict[str, dict[str, tuple[int, ...]]] = {
                "dense": {f"{owner}.dense.weight": (m, n)},
                "plain": {f"{owner}.down.weight": (k, n), f"{owner}.up.weight": (m, k)},
                "pivoted": {
                    f"{owner}.down.weight": (k, n),
                    f"{owner}.up.weight": (m - k, k),
                    f"{owner}.order": (m,),
                },
                "pivoted-columns": {
                    f"{owner}.down.weight": (k, n - k),
                    f"{owner}.up.weight": (m, k),
                    f"{owner}.order": (n,),
                },
                "pruned-rows": {f"{owner}.dense.weight": (k, n)},
                "pruned-columns": {f"{owner}.dense.weight": (m, k)},
            }
            expected = encodings[row.encoding]
            if row.name in biased:
                expected[f"{owner}.{BIAS[row.encoding]}"] = (m,)
            assert {n: stored[n] for n in stored if n.startswith(f"{owner}.")} == expected
            assert row.achieved_loss == pytest.approx(row.predicted_loss, rel=1e-3)
            assert row.rounding < 1e-5  # float32 factors


def test_the_manifest_names_every_file(flow: Flow) -> None:
    for output in flow.outputs:
        manifest = Manifest.model_validate_json((local(output.path) / "manifest.json").read_bytes())
        found = file_sums(local(output.path))
        del found["manifest.json"], found["_SUCCESS"]
        assert {name: entry.sha256 for name, entry in manifest.files.items()} == found
        assert all(
            (local(output.path) / name).stat().st_size == entry.bytes
            for name, entry in manifest.files.items()
        )
        assert manifest.base_files == {name: flow.base_sums[name] for name in manifest.base_files}
        assert {"config.json", "model.safetensors"} == manifest.base_files.keys()


def test_every_checkpoint_has_a_report_that_can_be_made_again(flow: Flow) -> None:
    for output in flow.outputs:
        folder = local(output.path)
        facts = ReportFacts.model_validate_json((folder / "report.json").read_bytes())
        done = read_compression(output)
        text = (folder / "report.html").read_text(encoding="utf-8")
        assert text == render_report(done, output.evaluation, facts)
        plots = [f'<figure id="plot-{name}">' for name in PLOTS]
        assert [text.count(plot) for plot in plots] == [1] * len(plots)
        assert [s.name for s in facts.spectra] == [row.name for row in done.matrices]
        assert all(
            {rank for rank in (row.cut_at,) if rank} <= {*spectrum.ranks}
            for row, spectrum in zip(done.matrices, facts.spectra, strict=True)
        )
        assert {"calibrate forward", "factorise", "truncate"} <= {s.name for s in facts.stages}
        assert "[report.html](report.html)" in (folder / "README.md").read_text(encoding="utf-8")
    found = read_reported([str(flow.run_dir)])
    assert [run.place for run in found] == [output.path for output in flow.outputs]
    assert [run.compression for run in found] == [output.compression for output in flow.outputs]


def test_tokenizer_files_are_those_of_the_base(flow: Flow) -> None:
    names = {name for name in flow.base_sums if name.startswith("tokenizer")}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    for output in flow.outputs:
        sums = file_sums(local(output.path))
        for name in names | {"generation_config.json"}:
            assert sums[name] == flow.base_sums[name]


def test_nothing_removed_is_the_base_itself(flow: Flow) -> None:
    [output] = [output for output in flow.outputs if output.ratio == 0]
    assert {row.encoding for row in read_compression(output).matrices} == {"dense"}
    ids = tiny_tokenizer()(prose(3000), verbose=False)["input_ids"]
    windows = torch.tensor(ids[: 8 * 64]).view(8, 64)
    dense = load_model(flow.base, "float32", "cpu", trust_remote_code=False)
    same = load_model(local(output.path), "float32", "cpu", trust_remote_code=False)
    assert perplexity(same, windows).mean == perplexity(dense, windows).mean


def test_what_is_not_targeted_is_the_base_bit_for_bit(flow: Flow) -> None:
    base = load_file(flow.base / "model.safetensors")
    targeted = tuple(f"model.{matrix.name}." for matrix in inspect(flow.base).matrices)
    kept = [name for name in base if not name.startswith(targeted)]
    assert len(kept) < len(base)
    for output in flow.outputs:
        stored = load_file(output.path / "model.safetensors")
        assert all(torch.equal(stored[name], base[name]) for name in kept)


def test_another_ratio_measures_nothing_anew(reference: Reference, tmp_path: Path) -> None:
    run_dir = reference.config.run_folder
    before = item_attempts(run_dir, *KINDS)
    request = ExportConfig(checkpoint=str(run_dir), output=tmp_path / "output", ratio=(0.45,))
    (output,) = compress(at_ratios(request)).outputs
    after = item_attempts(run_dir, *KINDS)
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys()
    assert all(key.startswith("factors/") for key in after.keys() - before.keys())
    assert weight_sums(local(output.path)) != weight_sums(local(reference.output.path))
