"""What training the factors gives, on several texts: the tables of docs/recovery.md.

    python -m benchmarks.recovery --model DIR --calibration TEXT --evaluation TEXT... --work-dir DIR

A row for every ratio and way: the cut alone, refined layer by layer, recovered, or both; both after
each of two cuts; and the update of SVD-LLM, LoRA of one factor after the other or of both at once.
Those of one cut share a run directory, so the model is calibrated once; a row that is there already
is only scored. Repetition is of what the model writes, greedily and sampled, after a dozen prompts.

    python -m benchmarks.recovery ... --way recover repeated --text TEXT --tokens N --curve

`recover` goes through N tokens of the text; `repeated` goes four times through a random quarter of
its windows. Both take the same steps and are judged on the same held-out windows, which the curve
shows: a row for every look.
"""

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from pipeline.compress import compress
from pipeline.evaluate import evaluate
from pipeline.report.wording import figure, plain_size
from pipeline.request.inputs import Inputs, gather
from pipeline.request.preflight import Checked
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, EvaluationTextConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.result.evaluation import ModelEvaluation
from schemas.result.recovery import RecoveryResult
from workers.process.logs import set_up_logging

_TIMES = 4  # that `repeated` goes through its part of the text
_REFINED: dict[str, dict[str, Any]] = {"refinement": {"enabled": True}}
_RECOVERED: dict[str, dict[str, Any]] = {"recovery": {"enabled": True}}
_WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "cut": {},
    "refine": _REFINED,
    "recover": _RECOVERED,
    "both": _REFINED | _RECOVERED,
    "rounds": _REFINED | _RECOVERED,
    "lora": {"recovery": {"method": "svd-llm"}},
    "lora-one-pass": {"recovery": {"method": "svd-llm", "order": "one-pass"}},
    "norms": {"recovery": {"enabled": True, "norms": True}},
    "repeated": _RECOVERED,
}
_USUAL = ("cut", "refine", "recover", "both", "lora", "lora-one-pass")


class Row(NamedTuple):
    """One checkpoint: how it was trained, if it was, and its scores on each text."""

    ratio: float
    way: str
    found: RecoveryResult | None
    scores: list[ModelEvaluation]

    @property
    def cells(self) -> list[str]:
        """What the table says of it."""
        perplexities = [f"{score.perplexity:.2f}" for score in self.scores]
        return [f"{self.ratio:.0%}", self.way, *self.trained, *perplexities, *self.written]

    @property
    def trained(self) -> tuple[str, ...]:
        """Objective, held-out loss before and after, tokens, seconds and memory of the training."""
        if (found := self.found) is None:
            return ("",) * 5
        return (
            found.config.objective,
            f"{figure(found.before)} to {figure(found.after)}",
            f"{found.looks[-1].tokens:,}",
            f"{found.seconds:,.0f}",
            "" if found.peak_bytes is None else plain_size(found.peak_bytes),
        )

    @property
    def written(self) -> tuple[str, str]:
        """Repetition and the degenerate of twelve continuations, greedy / sampled."""
        if (found := self.scores[0].generation) is None:
            return "", ""
        greedy, sampled = found.greedy, found.sampled
        return (
            f"{greedy.repetition:.2f} / {sampled.repetition:.2f}",
            f"{greedy.degenerate} / {sampled.degenerate}",
        )


def main() -> None:
    """Compress in every way, evaluate every result, print one table, and the curves if asked."""
    options = _parse()
    set_up_logging()
    console = Console(width=160)
    rows = [Row(0.0, "dense", None, _scores(options, options.model))]
    for ratio, way in itertools.product(options.ratio, options.way):
        rows.append(_row(options, ratio, way))
        console.print(*rows[-1].cells, sep="  ")  # the table may be hours away
    names = [Path(text).stem for text in options.evaluation]
    trained = ("objective", "held-out loss", "tokens", "seconds", "memory")
    table = Table("removed", "factors", *trained, *names, "repetition", "degenerate")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)
    if options.curve:
        for ratio in options.ratio:
            console.print(_curve(ratio, [row for row in rows if row.ratio == ratio]))


def _curve(ratio: float, rows: list[Row]) -> Table:
    """Held-out loss against tokens: a column for each way."""
    trained = {row.way: row.found for row in rows if row.found is not None}
    ways = (f"{way} ({found.config.objective})" for way, found in trained.items())
    table = Table("tokens", *ways, title=f"held-out loss, {ratio:.0%} removed")
    curves = [
        {look.tokens: look.held_out for look in result.looks} for result in trained.values()
    ]  # the last look at a number of tokens: after refinement, if there was one
    for tokens in sorted({tokens for curve in curves for tokens in curve}):
        cells = (figure(curve[tokens]) if tokens in curve else "" for curve in curves)
        table.add_row(f"{tokens:,}", *cells)
    return table


def _row(options: argparse.Namespace, ratio: float, way: str) -> Row:
    asked, length = _WAYS[way], options.sequence_length
    recovery: dict[str, Any] = {}
    if asked:
        recovery = {"text": tuple(options.text), "sequence_length": length}
    if "recovery" in asked:
        recovery |= asked["recovery"] | {"tokens": options.tokens, "batch": options.batch}
        recovery |= {"checkpointing": False} | ({"patience": 10**6} if options.curve else {})
    config = RunConfig(
        model=options.model,
        output=options.work_dir / f"{way}-{ratio:g}",
        run_dir=options.work_dir / (f"rounds-{ratio:g}.run" if way == "rounds" else "run"),
        ratio=(ratio,),
        rounds=2 if way == "rounds" else 1,
        calibration=CalibrationConfig(text=options.calibration, samples=64, sequence_length=length),
        evaluation=EvaluationTextConfig(text="none"),
        refinement=RefinementConfig(**asked.get("refinement", {})),
        recovery=RecoveryConfig(**recovery),
        cluster=ClusterConfig(workers=options.workers),
    )
    with _of_a_part(_TIMES if way == "repeated" else 1):
        [output] = compress(config).outputs
    found = output.compression.recovery
    return Row(ratio, way, found, _scores(options, str(output.path)))


@contextmanager
def _of_a_part(times: int) -> Iterator[None]:
    """Meanwhile, a run trains on one part of so many of the windows that it would train on."""

    def part(checked: Checked) -> Inputs:
        inputs = gather(checked)
        if (text := inputs.recovery) is None:
            return inputs
        windows = text.windows[: max(1, len(text.windows) // times)]
        return inputs._replace(recovery=text._replace(windows=windows))

    with patch("pipeline.compress.gather", part):
        yield


def _scores(options: argparse.Namespace, checkpoint: str) -> list[ModelEvaluation]:
    asked: dict[str, Any] = {"sequence_length": options.sequence_length, "windows": options.windows}
    return [
        evaluate(
            EvaluationConfig(checkpoint=checkpoint, text=text, sample_tokens=1, **asked)
        ).models[0]
        for text in options.evaluation
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", nargs="+", required=True)
    parser.add_argument("--text", nargs="*", default=[], help="To train on: the calibration text")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--way", choices=_WAYS, nargs="+", default=_USUAL)
    parser.add_argument("--tokens", type=int, help="The text once, if not given")
    parser.add_argument("--batch", type=int, help="Windows in a step: what makes 100 steps")
    parser.add_argument("--curve", action="store_true", help="Every look; nothing ends early")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=16, help="Of each text to evaluate on")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if "repeated" in options.way and options.tokens is None:
        parser.error("repeated needs --tokens: as many as `recover` trains on, each once")
    return options


if __name__ == "__main__":
    main()
