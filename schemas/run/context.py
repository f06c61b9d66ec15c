"""Windows of text that are no longer than the model was made for."""

from typing import TypeVar

from schemas.base import Schema
from schemas.errors import ConfigError
from schemas.model.spec import DecoderSpec
from schemas.request.config import CompressionConfig

C = TypeVar("C", bound=CompressionConfig)
S = TypeVar("S", bound=Schema)


def within_context(config: C, spec: DecoderSpec) -> C:
    """Return the request with windows that fit the model: the default lengths are lowered.

    Raises ConfigError if a length that was asked for is beyond it.
    """
    return config.model_copy(
        update={
            "calibration": fitted(
                config.calibration,
                spec,
                sequence_length="--sequence-length ",
                gradient_length="--gradient-length ",
            ),
            "evaluation": fitted(
                config.evaluation, spec, sequence_length="--set evaluation.sequence_length="
            ),
        }
    )


def fitted(group: S, spec: DecoderSpec, **options: str) -> S:
    """Do the same for a group of settings; `options` are how its lengths are set."""
    if spec.context is None:
        return group
    update = {}
    for name, option in options.items():
        length: int = getattr(group, name)
        if length <= spec.context:
            continue
        if name in group.model_fields_set:
            raise ConfigError(
                f"{option}{length} is beyond the {spec.context:,} tokens that the model was made "
                f"for; use {option}{spec.context} or less"
            )
        update[name] = spec.context
    return group.model_copy(update=update)
