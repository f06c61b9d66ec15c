"""How much text the gradient moments of a model need."""

from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig

GRADIENT_TOKENS = 16  # per dimension of the widest moment; with fewer, losses are underestimated
_LEAST_WINDOWS = 32
_BY_DEFAULT = 4  # times as many


def with_gradients(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Set the number of gradient windows, if none was asked for: what the model needs, or none."""
    text = config.calibration
    if text.gradient_samples is not None:
        return config
    windows = gradient_windows(text, spec) if config.needs_gradients else 0
    text = text.model_copy(update={"gradient_samples": windows})
    return config.model_copy(update={"calibration": text})


def gradient_windows(text: CalibrationConfig, spec: ModelSpec) -> int:
    """Return the number of gradient windows that was asked for, or that the model needs.

    They give at least 64 tokens per dimension of the widest gradient moment, whose size is the
    smaller side of a matrix: 524,288 tokens if that is 8,192. If the forward moments are of fewer
    tokens, so are the gradients, but of at least 16 per dimension.
    """
    if text.gradient_samples is not None:
        return text.gradient_samples
    tokens = GRADIENT_TOKENS * max(matrix.small for matrix in spec.matrices)
    least = max(_LEAST_WINDOWS, -(-tokens // text.gradient_length))
    forward = text.samples * text.sequence_length // text.gradient_length
    return max(least, min(_BY_DEFAULT * least, forward))
