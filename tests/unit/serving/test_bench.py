"""The whole of `bench`: settings, the order of its work, the clock, the figures, a table."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from pipeline import bench as pipeline_bench
from pipeline.bench import bench
from pipeline.cli.app import app
from pipeline.cli.tables.bench import bench_table
from pipeline.report.speed import bench_page
from schemas.errors import ConfigError
from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import BenchedModel, BenchReport, Served, Timing, over
from tests.low_rank import make_checkpoint
from tests.models import tiny_model
from tests.tables import shown
from tests.unit.report.test_report import Document, drawings
from workers.serving import process
from workers.serving.generation import Loaded, ServedModel

SMALL: dict[str, Any] = {"batch": 2, "prompt_tokens": 6, "new_tokens": 4, "dtype": "float32"}
WORKLOAD = Workload(batch=2, prompt_tokens=6, new_tokens=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "[small]"
    encodings = ("plain", "pivoted", "dense")
    return make_checkpoint(folder, "llama", encodings, num_hidden_layers=1).folder


def request(checkpoint: Path | str, **fields: Any) -> BenchConfig:
    asked = SMALL | {"device": "cpu", "threads": 1, "trust_remote_code": True}
    return BenchConfig(checkpoint=str(checkpoint), **(asked | fields))


def test_workloads_are_every_batch_with_every_length() -> None:
    config = request("x", batch="1, 8", prompt_tokens="16", new_tokens="2,4")
    found = [(load.batch, load.prompt_tokens, load.new_tokens) for load in config.workloads]
    assert found == [(1, 16, 2), (8, 16, 2), (1, 16, 4), (8, 16, 4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": "0"}, "greater than or equal to 1"),
        ({"batch": ()}, "at least 1 item"),
        ({"prompt_tokens": "12,x"}, "valid integer"),
        ({"new_tokens": "1,8"}, "2 at least"),
        ({"dtype": "auto"}, "float32"),
        (
            {"new_lengths": True, "engine": "vllm", "device": "auto", "threads": None},
            "of transformers, eager",
        ),
        ({"new_lengths": True, "compiled": True}, "of transformers, eager"),
        ({"new_lengths": True, "prompt_tokens": "64,5", "rounds": 5}, "more prompt_tokens than"),
    ],
)
def test_a_wrong_request_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        request("x", **wrong)


def test_more_tokens_than_the_model_was_made_for_are_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="4200 together, beyond the 4,096 tokens"):
        bench(request(base, prompt_tokens="100,4000", new_tokens=200))


def served(*rounds: tuple[float, float]) -> Served:
    timings = tuple(Timing(first_token_s=first, decode_s=rest) for first, rest in rounds)
    return Served(workload=WORKLOAD, rounds=timings)


def test_rates_count_every_sequence_and_the_tokens_after_the_first() -> None:
    found = served((0.5, 3.0), (0.25, 1.0))
    assert found.first_token_s == (0.5, 0.25)
    assert found.prefill == (2 * 6 / 0.5, 2 * 6 / 0.25)
    assert found.decode == (2 * 3 / 3.0, 2 * 3 / 1.0)


def test_lengths_that_are_new_are_a_token_shorter_in_every_round() -> None:
    [load] = request("x", prompt_tokens=6, rounds=3, new_lengths=True).workloads
    assert [load.in_round(at).prompt_tokens for at in range(3)] == [5, 4, 3]
    assert WORKLOAD.in_round(2) == WORKLOAD
    timings = (Timing(first_token_s=0.5, decode_s=1.0),) * 2
    found = Served(workload=load, rounds=timings)
    assert found.prefill == (2 * 5 / 0.5, 2 * 4 / 0.5)
    assert found.decode == (2 * 3 / 1.0,) * 2
    assert load.words == "2 × (6 + 4) tokens, new lengths"


def test_models_are_compared_within_a_round() -> None:
    assert over((10.0, 30.0, 2.0), (5.0, 10.0, 1.0)) == 2.0


class Recorded:
    """Stands in for a process: notes what is asked of it, and answers in its own time."""

    calls: list[tuple[str, str]] = []  # noqa: RUF012 (one list for all of them)

    def __init__(self, name: str, folder: Path, config: BenchConfig) -> None:
        self._name = Path(name).name

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append((self._name, "end"))

    def load(self) -> Loaded:
        self.calls.append((self._name, "load"))
        return Loaded(1.0, 10, "engine 1", "cpu")

    def prepare(self, workload: Workload) -> None:
        self.calls.append((self._name, f"prepare {workload.batch} x {workload.prompt_tokens}"))

    def measure(self, workload: Workload) -> Timing:
        self.calls.append((self._name, f"measure {workload.batch} x {workload.prompt_tokens}"))
        return Timing(first_token_s=len(self.calls), decode_s=1.0)

    def peak_bytes(self) -> int | None:
        return None


@pytest.mark.parametrize(("new_lengths", "lengths"), [(False, (3, 3)), (True, (2, 1))])
def test_models_take_turns(
    base: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_lengths: bool,
    lengths: tuple[int, int],
) -> None:
    monkeypatch.setattr(pipeline_bench, "ModelProcess", Recorded)
    monkeypatch.setattr(Recorded, "calls", [])
    fields: dict[str, Any] = {"batch": "1,2", "rounds": 2, "prompt_tokens": 3}
    fields |= {"new_lengths": new_lengths}
    report = bench(request(small, baseline=str(base), also=f"{base}", **fields))
    names = [base.name, small.name, base.name]
    turns = [["load"]]
    turns += [[f"prepare {n} x 3", *(f"measure {n} x {m}" for m in lengths)] for n in (1, 2)]
    steps = [step for turn in turns for step in turn]
    assert Recorded.calls[:-3] == [(name, step) for step in steps for name in names]
    assert [model.name for model in report.models] == [str(base), str(small), str(base)]
    assert report.in_turn
    first = report.models[0].served[0].rounds[0].first_token_s
    assert report.models[1].served[0].rounds[0].first_token_s == first + 1


def test_every_token_is_timed_even_after_an_end(base: Path) -> None:
    one = ServedModel(base, request(base))
    loaded = one.load()
    model = one._model
    with torch.no_grad():
        model.lm_head.weight.zero_()  # so that it writes token 0, which ends a text
    assert model.config.eos_token_id == 0
    one.prepare(WORKLOAD)
    times = one._run(WORKLOAD)
    assert len(times) == 2 + WORKLOAD.new_tokens
    assert times == sorted(times)
    timing = one.measure(WORKLOAD)
    assert timing.first_token_s > 0 < timing.decode_s
    assert loaded.seconds > 0
    assert loaded.parameters == model.num_parameters()
    assert one.peak_bytes() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch's own compiler
def test_a_compiled_model_is_compiled_once_for_prompts_and_once_for_tokens(small: Path) -> None:
    one = ServedModel(small, request(small, compiled=True))
    one.load()
    for workload in (WORKLOAD, WORKLOAD.model_copy(update={"batch": 1, "new_tokens": 5})):
        counters.clear()
        one.prepare(workload)
        assert counters["stats"]["unique_graphs"] == 2
        assert not counters["graph_break"]
        one.measure(workload)
        assert counters["stats"]["unique_graphs"] == 2
        one._model.compile(backend="eager", dynamic=False)  # C++ of other shapes shows no more


def report(peaks: Sequence[int | None] = (200, 100)) -> BenchReport:
    models = [
        BenchedModel(
            name=f"/models/{name}",
            parameters=parameters,
            bytes_on_disk=2 * parameters,
            stored_dtype="BF16",
            load_s=2.0,
            peak_bytes=peak,
            served=(served((speed, 1.0), (speed, 1.0), (speed, 1.0)),),
        )
        for name, parameters, speed, peak in (
            ("base", 1000, 0.5, peaks[0]),
            ("[small]", 800, 0.25, peaks[1]),
        )
    ]
    return BenchReport(
        engine="transformers 5",
        device="cpu",
        threads=2,
        dtype="float32",
        compiled=True,
        models=tuple(models),
    )


def test_the_table_compares_with_the_baseline() -> None:
    text = shown(bench_table(report()))
    assert "transformers 5, compiled, float32, cpu, 2 threads" in text
    assert "[small]" in text
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "800, x 0.80" in rows["parameters"]
    assert "x 0.50" in rows["peak memory"]
    assert "x 2.00" in rows["prompt tokens a second"]
    assert "24 (24 to 24)" in rows["prompt tokens a second"]
    assert "x 1.00" in rows["new tokens a second"]
    assert "2 × (6 + 4) tokens" in rows
    lines = shown(bench_table(report((None, None)))).splitlines()
    assert any("peak memory" in line and "B" not in line for line in lines)


def test_a_cluster_is_told_apart() -> None:
    assert "alone on a worker" not in shown(bench_table(report()))
    apart = report().model_copy(update={"in_turn": False})
    assert "alone on a worker" in shown(bench_table(apart))


def test_the_page_draws_speed_over_what_was_removed() -> None:
    text = bench_page(report())
    document = Document(text)
    prefill, decode = drawings(text)
    said = "2 × (6 + 4) tokens: 1.00 at 0 %, 2.00 at 20 %."
    assert said in prefill.attrib["aria-label"].replace("\xa0", " ")
    assert "1.00 at 20" in decode.attrib["aria-label"]
    [line] = [each for each in prefill if each.tag == "polyline"]
    assert len(line.attrib["points"].split()) == 2
    assert "[small]" in "".join(document.text)
    assert "transformers 5, compiled, float32, cpu, 2 threads; models in turn" in text
    alone = report().model_copy(update={"models": report().models[:1]})
    assert drawings(bench_page(alone)) == []


def test_the_page_has_the_medians_of_the_table() -> None:
    made = report().models[0]
    even = made.model_copy(update={"served": (served((0.1, 1.0), (0.2, 1.0)),)})
    both = report().model_copy(update={"models": (even,)})
    assert "0.150" in "".join(Document(bench_page(both)).text)
    assert "0.15" in shown(bench_table(both))


def test_the_report_survives_json() -> None:
    assert BenchReport.model_validate_json(report().model_dump_json()) == report()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for threads
def test_the_command_writes_what_it_shows(
    base: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(process, "get_context", lambda _: fork)  # imports nothing anew
    path = tmp_path / "figures" / "bench.json"  # folders that are not there
    page = tmp_path / "pages" / "bench.html"
    asked = ["bench", str(small), "--baseline", str(base), "--json", str(path), "--rounds", "2"]
    asked += ["--page", str(page)]
    asked += ["--batch", "1,2", "--prompt-tokens", "6", "--new-tokens", "4", "--threads", "1"]
    asked += ["--device", "cpu", "--dtype", "float32", "--trust-remote-code"]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    found = BenchReport.model_validate_json(path.read_text())
    assert [len(model.served) for model in found.models] == [2, 2]
    assert all(len(one.rounds) == 2 for model in found.models for one in model.served)
    assert all(model.peak_bytes for model in found.models)
    assert "[small]" in done.output
    assert page.read_text() == bench_page(found)
