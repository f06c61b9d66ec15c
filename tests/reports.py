"""What a run would say of a model of some layers: the matter that a report is made of."""

from typing import Any

from schemas.request.groups import CalibrationConfig, NumericsConfig
from schemas.request.methods import METHODS
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.result.comparison import Compared
from schemas.result.evaluation import EvaluationReport, Generation, ModelEvaluation, Written
from schemas.result.manifest import Compression
from schemas.result.output import MatrixResult
from schemas.result.quantization import QuantisedLinear, Quantization
from schemas.result.recovery import Look, RecoveryResult
from schemas.result.report import ReportFacts, SpectrumSample, StageTime

_ATTENTION = tuple(f"self_attn.{one}_proj" for one in "qkvo")
TARGETS = {  # the matrices of a layer of some families
    "llama": (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "mixtral": _ATTENTION,
}


def matrices(layers: int, family: str = "llama") -> tuple[MatrixResult, ...]:
    """A row for every target of a family; the last type is dense in layer 0."""
    paths = TARGETS[family]
    cut = [
        MatrixResult(
            name=f"layers.{layer}.{path}",
            shape=(64, 48),
            encoding="pivoted",
            rank=8 + (layer + at) % 32,
            parameters=2000,
            predicted_loss=1e-3 * (layer + 1),
            achieved_loss=1.01e-3 * (layer + 1),
            energy=1.0,
            nats=1e-4 * (layer + 1),
            shrinkage=0.05 * (1 + at),
        )
        for layer in range(layers)
        for at, path in enumerate(paths)
    ]
    lossless = {"rank": None, "predicted_loss": 0.0, "achieved_loss": 0.0, "nats": 0.0}
    at = len(paths) - 1
    cut[at] = cut[at].model_copy(update={"encoding": "dense", "parameters": 64 * 48} | lossless)
    return tuple(cut)


def compression(rows: tuple[MatrixResult, ...], **fields: Any) -> Compression:
    """A description of these rows; `fields` are of `Compression`."""
    given: dict[str, Any] = {
        "model": "org/Tiny-1B",
        "model_type": "llama",
        "ratio": 0.2,
        "keep": 0.8,
        "removed": 0.2001,
        "method": {"preset": "two-sided"} | METHODS["two-sided"],
        "targeted_before": 1_000_000,
        "targeted_after": 799_900,
        "parameters_before": 1_500_000,
        "parameters_after": 1_299_900,
        "bytes_before": 3_000_000,
        "bytes_after": 2_600_000,
        "nats": sum(row.nats or 0.0 for row in rows),
        "calibration": CalibrationConfig(),
        "numerics": NumericsConfig(),
        "seed": 0,
        "device": "x86_64",
        "dtype": "float32",
        "fallbacks": (),
        "matrices": rows,
    }
    return Compression(**(given | fields))


def quantization(*bits: float, **fields: Any) -> Quantization:
    """A linear layer with so many bits a weight, each; `fields` are of `Quantization`."""
    linears = [
        QuantisedLinear(name=f"layers.{at}", shape=(64, 48), group=32 << at, bits=one, error=0.1)
        for at, one in enumerate(bits)
    ]
    given: dict[str, Any] = {
        "checkpoint": "org/Tiny-1B",
        "base": "org/Tiny-1B",
        "scheme": "W4A16",
        "method": "round to nearest",
        "seed": 0,
        "device": "cpu",
        "bytes_before": 3_000_000,
        "bytes_after": 900_000,
        "linears": linears,
        "source_files": {},
    }
    return Quantization(**(given | fields))


PROMPTS = tuple(f"Prompt {at}:" for at in range(12))


def wrote(report: EvaluationReport, text: str = "a text") -> EvaluationReport:
    """The report, with 1 loop of the base and 5 of the result, and `text` otherwise."""
    models = tuple(
        model.model_copy(update={"generation": generation(loops, "again " * 20, text)})
        for loops, model in zip((1, 5), report.models, strict=True)
    )
    return report.model_copy(update={"models": models, "prompts": PROMPTS})


def evaluation(before: float = 22.59, after: float = 25.9, **fields: Any) -> EvaluationReport:
    """Base and result on one text; `fields` are of the compressed model."""

    def model(name: str, perplexity: float, **more: Any) -> ModelEvaluation:
        given: dict[str, Any] = {
            "name": name,
            "perplexity": perplexity,
            "mean_nll": perplexity / 8,
            "windows": 16,
            "predicted_tokens": 16 * 1023,
            "parameters": 1_500_000,
            "bytes_on_disk": 3_000_000,
            "stored_dtype": "BF16",
            "tokens_per_second": 120.0,
            "sample": None,
            "seconds": 3.0,
        }
        return ModelEvaluation(**(given | more))

    models = model("base", before), model("made", after, **({"kl": 0.12} | fields))
    return EvaluationReport(
        text="text/test.txt", sequence_length=1024, dtype="float32", models=models
    )


def compared(**fields: Any) -> Compared:
    """A row of a comparison; `fields` are of `Compared`."""
    given: dict[str, Any] = {
        "method": "two-sided",
        "ratio": 0.2,
        "removed": 0.2,
        "parameters": 1_299_900,
        "bytes": 2_600_000,
        "predicted": None,
        "place": "two-sided-0.20",
        "dtype": "float32",
        "evaluations": (),
    }
    return Compared(**(given | fields))


def recovery(*held_out: float | None, **settings: object) -> RecoveryResult:
    """A training that was looked at before every step of 9 tokens and at the end, best last."""
    return RecoveryResult(
        config=RecoveryConfig.model_validate(settings),
        refinement=RefinementConfig(passes=3),
        refined=(),
        windows=3,
        parameters=1,
        steps=len(held_out) - 1,
        best=len(held_out) - 1,
        looks=tuple(
            Look(step=step, tokens=9 * step, held_out=found, loss=None)
            for step, found in enumerate(held_out)
        ),
        workers=1,
        seconds=1.0,
    )


def generation(loops: int, loop: str, text: str) -> Generation:
    """Twelve greedy continuations, of which the last ones are a text; all sampled ones are."""

    def wrote(number: int) -> Written:
        texts = (loop,) * number + (text,) * (12 - number)
        return Written(repetition=number / 12, degenerate=number, early=1, texts=texts)

    return Generation(greedy=wrote(loops), sampled=wrote(0))


def facts(rows: tuple[MatrixResult, ...], points: int = 62, **fields: Any) -> ReportFacts:
    """Facts with a spectrum for every row; `fields` are of `ReportFacts`."""
    ranks = tuple(range(1, points + 1))
    given: dict[str, Any] = {
        "output": "0123456789abcdef",
        "command": ("svdllm", "compress", "--model", "org/Tiny-1B", "--ratio", "0.2"),
        "versions": {"svdllm": "0.1.0", "torch": "2.13.0"},
        "started": "2026-01-31T12:00:00+00:00",
        "written": "2026-01-31T12:05:00+00:00",
        "workers": 2,
        "layout": "2 layer shards",
        "stages": (
            StageTime(name="inspect", seconds=1.5),
            StageTime(name="factorise", seconds=90.0, busy=(0.9, 0.45)),
        ),
        "warnings": (),
        "spectra": tuple(
            SpectrumSample(
                name=row.name,
                size=points,
                ranks=ranks,
                values=tuple(1.2345e-3 / at**2 for at in ranks),
            )
            for row in rows
        ),
    }
    return ReportFacts(**(given | fields))
