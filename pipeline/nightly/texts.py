"""The texts of a night, checked before its work begins."""

from schemas.errors import ConfigError
from schemas.request.nightly import NightlyConfig
from schemas.request.texts import shares_of
from workers.text.documents import iter_documents
from workers.text.sources import checksum_of, evaluation_source, is_on_hub


def text_sums(config: NightlyConfig) -> dict[str, str]:
    """Return SHA-256 of the local texts. Raises TextError or ConfigError if one cannot serve."""
    asked = config.calibration.text
    evaluation = evaluation_source(config.evaluation.text, asked)
    if config.gate is not None and evaluation is None:
        raise ConfigError(
            "gate: there is no text to evaluate on; name one with --evaluate, or leave out --gate"
        )
    found = {}
    trained = config.recovery.text if config.trains else ()
    for text in {*shares_of(asked), *shares_of(trained), *filter(None, [evaluation])}:
        if not is_on_hub(text):
            for _ in iter_documents(text, "calibration"):
                pass
        if checksum := checksum_of(text):
            found[text] = checksum
    return found
