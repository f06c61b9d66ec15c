"""Evaluate: base and result on the same text, shard by shard, before a result is published."""

from pipeline.request.inputs import EvaluationText, tokens_sha256
from pipeline.run import Run
from pipeline.stages.output import Output
from pipeline.stages.scored import base_of, crew_of
from pipeline.stages.staging import everywhere
from pipeline.stream.boundaries import Boundary
from pipeline.stream.comparison import compare
from pipeline.stream.models import Model
from schemas.errors import RunError
from schemas.location import Location, Url
from schemas.model.dtypes import STORED
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from schemas.run.identity import fingerprint
from workers.checkpoint.source import Source
from workers.checkpoint.verify import written_in
from workers.evaluation.continuations import PROMPTS
from workers.model.inspection import inspect_decoder
from workers.storage.models import read_model
from workers.storage.places import write


def evaluate(output: Output) -> None:
    """Set `evaluation`: perplexity of the base and of the result, and the KL between them, with
    what both wrote when they were verified. It stays None if the run has no text for it.
    """
    if output.run.inputs.evaluation is None:
        return
    scored, written = score(output), written_in(output.checks)
    places = (output.run.config.model, str(output.place))  # kept scores may be of earlier ones
    models = tuple(
        model.model_copy(
            update={
                "name": place,
                "sample": check and check.detail,
                "generation": check and check.generation,
            }
        )
        for model, place, check in zip(scored.models, places, written, strict=True)
    )
    prompts = PROMPTS if any(model.generation for model in models) else ()
    output.evaluation = scored.model_copy(update={"prompts": prompts, "models": models})


def score(output: Output) -> EvaluationReport:
    """Return the scores of base and result. They are kept in the run directory; if they are missing
    there, the workers of the pool compute them, from the staged weight files and config.json.

    Raises RunError if the run has no text for it.
    """
    run, text = output.run, _text(output.run)
    found = known_scores(output)
    if found is None:
        found = EvaluationReport(
            text=text.name,
            text_sha256=text.sha256,
            sequence_length=run.config.evaluation.sequence_length,
            asked=run.config.evaluation.windows,
            dtype=run.facts.dtype,
            models=_score(output, text),
        )
        write(_kept(output), found.model_dump_json(indent=2).encode())
        run.progress.note(f"{output.place}: {_summary(*found.models)}")
    return found


def known_scores(output: Output) -> EvaluationReport | None:
    """Return the scores of an output that the run directory keeps; None if there are none."""
    return read_model(_kept(output), EvaluationReport)


def asked_for(run: Run) -> str:
    """Identify the text of the evaluation, and how much of it is scored."""
    text = _text(run)
    asked = run.config.evaluation.model_copy(update={"text": text.name})
    return fingerprint([asked.model_dump(), tokens_sha256(text.windows)])


def _kept(output: Output) -> Location:
    return output.run.store.root / f"evaluations/{output.identity}-{asked_for(output.run)}.json"


def _text(run: Run) -> EvaluationText:
    if run.inputs.evaluation is None:
        raise RunError("the run has no text to evaluate on; start it again")
    return run.inputs.evaluation


def _score(output: Output, text: EvaluationText) -> tuple[ModelEvaluation, ...]:
    run, place = output.run, str(output.place)
    crew, cluster = crew_of(run, output.identity)
    run.discard(f"boundaries/{output.identity}")
    base = base_of(run, run.facts.dtype)
    kept = fingerprint([run.ids.forward, tokens_sha256(text.windows)])
    last = Boundary(run.store, kept, base.source.spec.layers)
    with everywhere(output, weights=True) as at:
        spec = inspect_decoder(output.staging, at if isinstance(at, Url) else None)
        source = Source(str(at), None, spec, STORED[run.facts.dtype], run.config.fetched)
        result = Model(place, output.staging, source)
        return compare(
            base, result, text.windows, run.config.cluster, cluster, run.progress, crew, last
        )


def _summary(base: ModelEvaluation, result: ModelEvaluation) -> str:
    divergence = "" if result.kl is None else f", KL {result.kl:.4f} nats a token"
    return (
        f"perplexity {base.perplexity:.2f} -> {result.perplexity:.2f} "
        f"({result.perplexity / base.perplexity - 1:+.1%}){divergence}"
    )
