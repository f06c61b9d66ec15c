"""Windows of text that are no longer than the model was made for."""

from typing import TypeVar

from schemas.base import Schema
from schemas.errors import ConfigError
from schemas.model.spec import DecoderSpec
from schemas.request.compression import CompressionConfig

C = TypeVar("C", bound=CompressionConfig)
S = TypeVar("S", bound=Schema)

SCORED_LENGTH = "--set evaluation.sequence_length="  # as a run is told


def within_context(config: C, spec: DecoderSpec, scored: str = SCORED_LENGTH) -> C:
    """Return the request with windows that fit the model: the default lengths are lowered.

    Raises ConfigError if another length than the default is beyond it.
    """
    return config.model_copy(
        update={
            "calibration": fitted(
                config.calibration,
                spec.context,
                sequence_length="--sequence-length ",
                gradient_length="--gradient-length ",
            ),
            "evaluation": fitted(config.evaluation, spec.context, sequence_length=scored),
            "recovery": fitted(
                config.recovery, spec.context, sequence_length="--set recovery.sequence_length="
            ),
        }
    )


def fitted(group: S, context: int | None, **options: str) -> S:
    """Do the same for a group of settings; `options` say how its lengths are set."""
    if context is None:
        return group
    update = {}
    for name, option in options.items():
        length: int = getattr(group, name)
        if length <= context:
            continue
        if length != type(group).model_fields[name].default:
            raise ConfigError(
                f"{option}{length} is beyond the {context:,} tokens that the model was made "
                f"for; use {option}{context} or less"
            )
        update[name] = context
    return group.model_copy(update=update)
