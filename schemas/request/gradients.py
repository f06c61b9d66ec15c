"""How much text the gradient moments of a model take."""

from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig

GRADIENT_TOKENS = 16  # a dimension of the widest moment; with less, losses are underestimated
_LEAST_WINDOWS = 32


def with_gradients(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """The same run with the number of gradient windows that its model takes, if none was asked for.

    They give at least 16 tokens to each dimension of the widest gradient moment, which is that of
    the smaller side of a matrix: 131,072 tokens where that is 8,192.
    """
    text = config.calibration
    if text.gradient_samples is not None:
        return config
    tokens = GRADIENT_TOKENS * max(matrix.small for matrix in spec.matrices)
    windows = max(_LEAST_WINDOWS, -(-tokens // text.gradient_length))
    text = text.model_copy(update={"gradient_samples": windows if config.needs_gradients else 0})
    return config.model_copy(update={"calibration": text})
