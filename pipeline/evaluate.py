"""`svdllm evaluate`: perplexity of a checkpoint and of its base, on the same tokens."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemas.errors import CheckpointError, ConfigError
from schemas.location import kept_at_home
from schemas.request.evaluation import EvaluationConfig
from schemas.result.evaluation import EvaluationReport
from schemas.run.context import fitted
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import context_of
from workers.checkpoint.fetching import resolve
from workers.checkpoint.names import CONFIG
from workers.checkpoint.stored import at_hand
from workers.evaluation.continuations import PROMPTS
from workers.evaluation.perplexity import evaluate_checkpoint
from workers.model.loading import load_tokenizer
from workers.storage.places import url_of
from workers.text.windows import evaluation_windows, shared_tokens

if TYPE_CHECKING:
    from pipeline.stream.scorers import Scorers  # ray loads only when needed


def evaluate(config: EvaluationConfig, scorers: "Scorers | None" = None) -> EvaluationReport:
    """Score the baseline, if there is one, then the checkpoint; one model in memory at a time.

    A streamed evaluation scores both at once and never holds a whole model; it may have workers
    that are there already. Raises TextError, CheckpointError, VerificationError or NumericsError;
    streamed, also ConfigError or WorkerError.
    """
    with contextlib.ExitStack() as copies:
        fetched = kept_at_home() if config.streamed else None
        folders = [local_folder(*model, copies, fetched) for model in config.models]
        return evaluate_in(folders, config, scorers)


def evaluate_in(
    folders: Sequence[Path], config: EvaluationConfig, scorers: "Scorers | None" = None
) -> EvaluationReport:
    """Do so with the models in these folders."""
    names = [name for name, _ in config.models]
    config, tokenizers, windows = read_windows(config, folders)
    if config.streamed:
        from pipeline.stream.evaluation import evaluate_streamed  # ray loads only when needed

        models = evaluate_streamed(names, folders, windows, config, scorers)
    else:
        models = tuple(
            evaluate_checkpoint(name, folder, windows, tokenizer, config)
            for name, folder, tokenizer in zip(names, folders, tokenizers, strict=True)
        )
    return EvaluationReport(
        text=config.text,
        sequence_length=config.sequence_length,
        asked=config.windows,
        dtype=config.dtype,
        prompts=PROMPTS if any(model.generation for model in models) else (),
        models=models,
    )


class ScoredText(NamedTuple):
    """A request that fits its models, their tokenizers, and windows (w, length) of the text."""

    config: EvaluationConfig
    tokenizers: list[PreTrainedTokenizerBase]
    windows: Tensor


def read_windows(config: EvaluationConfig, folders: Sequence[Path]) -> ScoredText:
    """Read the text as the models in some folders see it.

    Raises TextError if it is shorter than a window, CheckpointError if they read it differently,
    ConfigError if a window is longer than one of them was made for.
    """
    contexts = [context_of(read_config(folder)) for folder in folders]
    context = min((one for one in contexts if one is not None), default=None)
    config = fitted(config, context, sequence_length="--sequence-length ")
    tokenizers = [load_tokenizer(folder, config.trust_remote_code) for folder in folders]
    wanted = config.windows and config.windows * config.sequence_length
    names = [name for name, _ in config.models]
    tokens = shared_tokens(config.text, dict(zip(names, tokenizers, strict=True)), wanted)
    windows = evaluation_windows(tokens, config.sequence_length, config.windows)
    return ScoredText(config, tokenizers, windows)


def local_folder(
    name: str, revision: str | None, copies: contextlib.ExitStack, fetched: Path | None = None
) -> Path:
    """Return a checkpoint's folder; a URL gets a local copy for as long as `copies` is open, or
    one without weights below `fetched`.
    """
    if fetched is None and (url := url_of(name)):
        return copies.enter_context(at_hand(url, work_dir=Path(tempfile.gettempdir())))[0]
    folder = resolve(name, revision, fetched)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{name}: no config.json, so no checkpoint; of a run with several ratios name one, as "
            "OUTPUT/ratio-0.20"
        )
    return folder


def require_no_urls(names: Sequence[str], setting: str) -> None:
    """Raises ConfigError if models for all nodes are in an object store, where none has a copy."""
    if urls := [name for name in names if url_of(name)]:
        raise ConfigError(
            f"{', '.join(urls)}: {setting} needs models that every node sees as folders or hub "
            f"ids; copy it to shared storage, or leave out {setting}"
        )
