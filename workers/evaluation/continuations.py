"""What a model writes: a dozen prompts of several kinds, continued greedily and sampled.

load_check.py runs this file without the project, so it imports torch and transformers only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

GenerationConfig: Any = transformers.GenerationConfig

PROMPTS = (
    "The city lies on the river",
    "When the last guest had gone, Martha locked the door and",
    "A glacier is a body of ice that",
    "Question: Why is the sky dark at night?\nAnswer:",
    "Write a short note that thanks a neighbour for watering the plants.\n\n",
    "What to pack for a week in the mountains:\n1. A warm jacket\n2.",
    '"Did you close the window?" asked Tom.\n"I thought you did," said Anna.\n"',
    'def mean(values):\n    """Return the mean of some numbers."""\n',
    "A ticket costs 4 euros. Three tickets cost 12 euros. Seven tickets cost",
    '[{"name": "Oslo", "country": "Norway"}, {"name": "Lima", "country":',
    "Im Herbst gehen die Kinder gern in den Wald, weil",
    "Le matin, la boulangère ouvre sa boutique et",
)
TOKENS = 64  # new ones of each
SAMPLE_TOKENS = 32  # of those, in the text that is shown by itself
TOP_P = 0.95  # at temperature 1, as in Holtzman et al. (arXiv 1904.09751, Table 1)
_SEED = 0


class Continuation(NamedTuple):
    """Tokens of a prompt, and the new ones before the end of the text."""

    prompt: list[int]
    tokens: list[int]


class _Sample(LogitsProcessor):
    """Makes the best token of every row but the first ones a sample of the row's nucleus.

    The maximum of logits and Gumbel noise is a sample of their softmax. The noise is the same for
    every model of one vocabulary, so base and result differ by their logits alone.
    """

    def __init__(self, greedy: int) -> None:
        self.greedy = greedy
        self.generator = torch.Generator().manual_seed(_SEED)
        self.nucleus = TopPLogitsWarper(TOP_P)

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        logits = self.nucleus(input_ids, scores[self.greedy :].float())
        uniform = torch.rand(logits.shape, generator=self.generator).clamp_(min=1e-20)
        noise = -torch.log(-torch.log(uniform))
        return torch.cat([scores[: self.greedy].float(), logits + noise.to(logits.device)])


@torch.no_grad()
def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int, greedy: int
) -> list[Continuation]:
    """Continue prompts in one batch; the first `greedy` ones greedily, the others sampled.

    Generation settings that came with the model are lost, except what ends a text. Of a model of
    few positions, prompts and continuations are cut to a half of them each.
    """
    ids = [tokenizer(prompt)["input_ids"] or [0] for prompt in prompts]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions:
        tokens = min(tokens, positions // 2)
        ids = [row[tokens - positions :] for row in ids]
    length = max(map(len, ids))
    rows = [[0] * (length - len(row)) + row for row in ids]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in ids]
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)
    output = model.generate(
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([_Sample(greedy)] if greedy < len(ids) else []),
    )
    last = {ends} if isinstance(ends, int) else set(ends or ())
    new = output[:, length:].tolist()
    return [Continuation(row, _before(last, one)) for row, one in zip(ids, new, strict=True)]


def _before(last: set[int], tokens: list[int]) -> list[int]:
    ends = (at for at, token in enumerate(tokens) if token in last)
    return tokens[: next(ends, len(tokens))]


def whole(tokenizer: Any, found: Continuation, most: int = TOKENS) -> str:
    """Return the text of a prompt and of the first tokens of its continuation."""
    ids = found.prompt + found.tokens[:most]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def sample(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """Return a prompt and its greedy continuation."""
    [found] = continuations(model, tokenizer, [prompt], tokens, greedy=1)
    return whole(tokenizer, found, tokens)


def written(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Continue the dozen: `greedy` and `sampled` hold a text and its tokens for every prompt.

    `sample` is the first prompt with the first tokens of its greedy continuation.
    """
    number = len(PROMPTS)
    found = continuations(model, tokenizer, PROMPTS * 2, TOKENS, greedy=number)
    rows = [{"text": _new(tokenizer, one), "tokens": one.tokens} for one in found]
    text = whole(tokenizer, found[0], SAMPLE_TOKENS)
    return {"sample": text, "greedy": rows[:number], "sampled": rows[number:]}


def _new(tokenizer: Any, found: Continuation) -> str:
    """Return the text of a continuation; some tokenizers drop a space before tokens alone."""
    return whole(tokenizer, found)[len(whole(tokenizer, found, 0)) :]
