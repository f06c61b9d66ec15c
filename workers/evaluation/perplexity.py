"""Perplexity by the field's protocol, and the other figures of one model's evaluation."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.errors import CheckpointError, NumericsError
from schemas.request.evaluation import EvaluationConfig
from schemas.result.evaluation import ModelEvaluation
from workers.checkpoint.contents import weight_files
from workers.evaluation.continuations import sample, written
from workers.model.loading import load_model, parameters_of
from workers.process.devices import free_cached
from workers.repetition import generation_of

_POSITIONS = 256  # positions whose float32 logits and log-probabilities exist at once
_LARGEST_MEAN = 700.0  # nats a token; exp overflows float64 from 709.8 on


class TokenLoss(NamedTuple):
    """Summed negative log likelihood in nats (a float64), and the number of predicted tokens."""

    nll: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, windows: Tensor) -> TokenLoss:
    """Return the loss of a model on windows (w, length) of tokens, int64, on any device.

    The protocol of GPTQ and SVD-LLM: windows do not overlap and do not see one another, and each
    predicts its tokens 2..length; the mean is over all predicted tokens. Logits of one window, in
    the model's dtype, are the only large tensor.
    Raises NumericsError at a window whose loss is not finite; no window is ever left out.
    """
    predicted = windows.shape[1] - 1
    total = 0.0
    for index, window in enumerate(windows):
        loss = _window_loss(model, window.to(model.device))
        require_finite(loss / predicted, f"window {index} of {len(windows)}", str(model.dtype))
        total += loss
    return TokenLoss(total, len(windows) * predicted)


def require_finite(mean: float, what: str, dtype: str) -> None:
    """Raises NumericsError if a mean in nats a token is not finite, or its exp would not be."""
    if not mean <= _LARGEST_MEAN:  # true for NaN, too
        raise NumericsError(
            f"{what}: mean loss {mean} nats a token, not "
            f"a finite number up to {_LARGEST_MEAN:.0f}; the model's weights are damaged or "
            f"overflow {dtype}: evaluate with dtype float32, or compress anew"
        )


def require_vocabulary(folder: Path, windows: Tensor, vocabulary: int) -> None:
    """Raises CheckpointError if the windows hold a token that the model does not embed."""
    if windows.numel() and int(windows.max()) >= vocabulary:
        raise CheckpointError(
            f"{folder}: its tokenizer gives token {int(windows.max())}, but the model embeds only "
            f"{vocabulary}; restore the tokenizer files that belong to the model"
        )


def _window_loss(model: PreTrainedModel, window: Tensor) -> float:
    """Sum -log p(token | tokens before it) from the second token on; terms float32, sum float64."""
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    chunks = zip(torch.split(logits, _POSITIONS), torch.split(window[1:], _POSITIONS), strict=True)
    losses = [
        functional.cross_entropy(scores.float(), targets, reduction="none").double().sum()
        for scores, targets in chunks
    ]
    return float(torch.stack(losses).sum())


def evaluate_checkpoint(
    name: str,
    folder: Path,
    windows: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluationConfig,
) -> ModelEvaluation:
    """Load a checkpoint, score it on windows (w, length), let it write texts, and free it."""
    start = time.perf_counter()
    model = load_model(
        folder, config.dtype, config.device, config.trust_remote_code, config.device_map
    )
    try:
        vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
        require_vocabulary(folder, windows, vocabulary)
        perplexity(model, windows[:1])  # what takes time once: else the first model's alone
        scoring = time.perf_counter()
        loss = perplexity(model, windows)
        rate = windows.numel() / (time.perf_counter() - scoring)
        text = sample(model, tokenizer, config.sample_prompt, config.sample_tokens)
        generation = generation_of(written(model, tokenizer))
        size, dtype = stored(folder)
        return ModelEvaluation(
            name=name,
            perplexity=loss.perplexity,
            mean_nll=loss.mean,
            windows=len(windows),
            predicted_tokens=loss.tokens,
            parameters=parameters_of(model),
            bytes_on_disk=size,
            stored_dtype=dtype,
            tokens_per_second=rate,
            sample=text,
            generation=generation,
            seconds=time.perf_counter() - start,
        )
    finally:
        del model
        free_cached()  # parts of a model may refer to one another


def stored(folder: Path) -> tuple[int, str]:
    """Return the bytes of the weight files of a checkpoint, and the dtypes of their weights: all
    that are floats, and those of quantised weights ("BF16+F32", "BF16+I32").
    """
    files = [folder / name for name in weight_files(folder)]
    found: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                dtype = file.get_slice(key).get_dtype()
                if dtype.startswith(("F", "BF")) or key.endswith((".weight", ".weight_packed")):
                    found.add(dtype)
    return sum(path.stat().st_size for path in files), "+".join(sorted(found))
