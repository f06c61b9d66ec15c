"""The perplexity of one checkpoint by the protocol of the README, for benchmarks that print it."""

from pipeline.evaluate import evaluate
from schemas.request.evaluation import EvaluationConfig
from schemas.result.evaluation import ModelEvaluation


def score(checkpoint: str, text: str, windows: int, length: int = 1024) -> ModelEvaluation:
    """The first windows of so many tokens of a text, by one checkpoint in float32."""
    config = EvaluationConfig(
        checkpoint=checkpoint,
        text=text,
        sequence_length=length,
        windows=windows,
        sample_tokens=1,
    )
    return evaluate(config).models[0]
