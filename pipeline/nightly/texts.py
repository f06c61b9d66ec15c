"""The texts of a night, checked before its work begins."""

from schemas.errors import ConfigError
from schemas.request.nightly import NightlyConfig
from schemas.request.texts import shares_of
from workers.text.documents import require_readable
from workers.text.sources import checksum_of, evaluation_source


def text_sums(config: NightlyConfig) -> dict[str, str]:
    """Return SHA-256 of the local texts. Raises TextError or ConfigError if one cannot serve."""
    asked = config.calibration.text
    evaluation = evaluation_source(config.evaluation.text, asked)
    if config.gate is not None and evaluation is None:
        raise ConfigError(
            "gate: there is no text to evaluate on; name one with --evaluate, or leave out --gate"
        )
    trained = config.recovery.text if config.trains else ()
    texts = {*shares_of(asked), *shares_of(trained), *filter(None, [evaluation])}
    require_readable(texts, "calibration")
    return {text: checksum for text in texts if (checksum := checksum_of(text))}
