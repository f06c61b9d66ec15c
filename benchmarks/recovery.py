"""What training the factors gives, on several texts: the table of docs/recovery.md.

    python -m benchmarks.recovery --model DIR --calibration TEXT --evaluation TEXT... --work-dir DIR

A row for every ratio and way: the cut alone, refined layer by layer, recovered, or both; and the
update of SVD-LLM, LoRA of one factor after the other or of both at once. All share one run
directory, so the model is calibrated once; a row that is there already is only scored.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import score
from pipeline.compress import compress
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, EvaluationTextConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from workers.process.logs import set_up_logging

_REFINED: dict[str, dict[str, Any]] = {"refinement": {"enabled": True}}
_RECOVERED: dict[str, dict[str, Any]] = {"recovery": {"enabled": True}}
_WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "cut": {},
    "refine": _REFINED,
    "recover": _RECOVERED,
    "both": _REFINED | _RECOVERED,
    "lora": {"recovery": {"method": "svd-llm"}},
    "lora-one-pass": {"recovery": {"method": "svd-llm", "order": "one-pass"}},
}


class Row(NamedTuple):
    """One checkpoint: loss on held-out text before and after, seconds, perplexity on each text."""

    ratio: float
    way: str
    held_out: str
    seconds: str
    perplexities: list[float]


def main() -> None:
    """Compress in every way, evaluate every result, print one table."""
    options = _parse()
    set_up_logging()
    rows = [_row(options, ratio, way) for ratio in options.ratio for way in options.way]
    dense = [score(options.model, text, options.windows).perplexity for text in options.evaluation]
    table = Table("removed", "factors", "held-out loss", "seconds", *map(_name, options.evaluation))
    table.add_row("0 %", "dense", "", "", *(f"{value:.2f}" for value in dense))
    for row in rows:
        cells = [f"{value:.2f}" for value in row.perplexities]
        table.add_row(f"{row.ratio:.0%}", row.way, row.held_out, row.seconds, *cells)
    Console(width=120).print(table)


def _row(options: argparse.Namespace, ratio: float, way: str) -> Row:
    asked = _WAYS[way]
    trained = {"tokens": options.tokens, "text": tuple(options.text)} if asked else {}
    recovery = asked.get("recovery", {}) | trained | {"checkpointing": False}
    config = RunConfig(
        model=options.model,
        output=options.work_dir / f"{way}-{ratio:g}",
        run_dir=options.work_dir / "run",
        ratio=(ratio,),
        calibration=CalibrationConfig(text=options.calibration, samples=64, sequence_length=1024),
        evaluation=EvaluationTextConfig(text="none"),
        refinement=RefinementConfig(**asked.get("refinement", {})),
        recovery=RecoveryConfig(**recovery),
        cluster=ClusterConfig(workers=options.workers),
    )
    [output] = compress(config).outputs
    found = output.compression.recovery
    return Row(
        ratio,
        way,
        "" if found is None else f"{found.before:.3f} to {found.after:.3f}",
        "" if found is None else f"{found.seconds:,.0f}",
        [score(str(output.path), text, options.windows).perplexity for text in options.evaluation],
    )


def _name(text: str) -> str:
    return Path(text).stem


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", nargs="+", required=True)
    parser.add_argument("--text", nargs="*", default=[], help="To train on: the calibration text")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--way", choices=_WAYS, nargs="+", default=list(_WAYS))
    parser.add_argument("--tokens", type=int, help="The text once, if not given")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
