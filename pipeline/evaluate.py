"""`svdllm evaluate`: perplexity of a checkpoint beside that of its base, on the same tokens."""

import contextlib
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas.errors import CheckpointError
from schemas.evaluation import EvaluateConfig, EvaluationReport, ModelEvaluation
from schemas.printable import escaped, printable
from workers.fetching import resolve
from workers.loading import load_tokenizer
from workers.objects import local_copy, url_of
from workers.perplexity import evaluate_checkpoint
from workers.text import evaluation_windows, shared_tokens


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Score the baseline, if there is one, then the checkpoint; one model in memory at a time.

    Streamed, both at once, and no model in any memory. Raises TextError, CheckpointError,
    VerificationError or NumericsError; streamed, ConfigError or WorkerError, too.
    """
    names = [name for name in (config.baseline, config.checkpoint) if name is not None]
    with contextlib.ExitStack() as copies:
        return _evaluate(config, names, [_folder(name, copies) for name in names])


def _folder(name: str, copies: contextlib.ExitStack) -> Path:
    """Of a URL a local copy, for as long as `copies` is open."""
    if url := url_of(name):
        return copies.enter_context(local_copy(url))
    folder = resolve(name, None)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name}: no config.json, so no checkpoint; of a run with several ratios name one, as "
            "OUTPUT/ratio-0.20"
        )
    return folder


def _evaluate(config: EvaluateConfig, names: list[str], folders: list[Path]) -> EvaluationReport:
    tokenizers = [load_tokenizer(folder, config.trust_remote_code) for folder in folders]
    wanted = config.max_windows and config.max_windows * config.sequence_length
    tokens = shared_tokens(config.text, dict(zip(names, tokenizers, strict=True)), wanted)
    windows = evaluation_windows(tokens, config.sequence_length, config.max_windows)
    if config.streamed:
        from pipeline.streamed import evaluate_streamed  # ray loads only when needed

        models = evaluate_streamed(names, folders, windows, config)
    else:
        models = tuple(
            evaluate_checkpoint(name, folder, windows, tokenizer, config)
            for name, folder, tokenizer in zip(names, folders, tokenizers, strict=True)
        )
    return EvaluationReport(
        text=config.text,
        sequence_length=config.sequence_length,
        dtype=config.dtype,
        models=models,
    )


def render(report: EvaluationReport) -> RenderableType:
    """One column a model, the changes against the first one, and the samples underneath."""
    first = report.models[0]
    title = (
        f"{printable(Path(report.text).name)}: {first.windows} windows of "
        f"{report.sequence_length} tokens, in {report.dtype}"
    )
    table = Table(title=Text(title))  # Text: a name is no markup
    table.add_column()
    for model in report.models:
        table.add_column(Text(printable(Path(model.name).name)), justify="right", overflow="fold")
    for row in zip(*(_column(model, first) for model in report.models), strict=True):
        if any(value for _, value in row):
            table.add_row(row[0][0], *(value for _, value in row))
    samples = [_sample(model, model.sample) for model in report.models if model.sample is not None]
    return Group(table, *samples)


def _column(model: ModelEvaluation, first: ModelEvaluation) -> list[tuple[str, str]]:
    change, removed, faster = "", "", ""
    if model is not first:
        change = f" ({model.perplexity / first.perplexity - 1:+.1%})"
        removed = f" ({model.parameters / first.parameters - 1:+.1%})"
        faster = f" ({model.tokens_per_second / first.tokens_per_second - 1:+.1%})"
    divergence = "" if model.kl is None else f"{model.kl:.4f} nats"
    return [
        ("perplexity", f"{model.perplexity:.2f}{change}"),
        ("KL from the base", divergence),
        ("parameters", f"{model.parameters:,}{removed}"),
        ("weights on disk", f"{model.bytes_on_disk / 1e6:,.1f} MB, {model.stored_dtype}"),
        ("tokens a second", f"{model.tokens_per_second:,.0f}{faster}"),
        ("seconds", f"{model.seconds:.1f}"),
    ]


def _sample(model: ModelEvaluation, sample: str) -> Text:
    name = Text(f"\n{printable(Path(model.name).name)}: ", style="bold")
    lines = "\n".join(map(escaped, sample.split("\n")))
    return name.append(lines, style="not bold")  # Text: a name or a prompt is no markup
