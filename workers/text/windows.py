"""The tokens of a text, and the windows that they are cut into."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemas.errors import CheckpointError, TextError
from schemas.run.texts import TextFacts, Use
from workers.process.logs import log
from workers.text.documents import iter_documents
from workers.text.rendering import Rendering
from workers.text.rows import Document
from workers.text.sources import Split, commit_of, hub_text

_CHARACTERS_PER_TOKEN = 5  # a first guess for how much of a stream to read; English is near it
_SPARE_TOKENS = 32  # extra tokens to read: the last tokens before a cut can differ
_PART = re.compile(r".{4096,}?(?<=\S)(?=\s)|.+", re.DOTALL)  # of a text, to the end of a word


@dataclass(frozen=True)
class Tokens:
    """The tokens (t,), int64, of a text, and those (b,) with which its tokenizer begins every text,
    a BOS for many models, or none.
    """

    begin: Tensor
    ids: Tensor

    def whole(self) -> Tensor:
        """Return the text as it begins, (b + t,)."""
        return torch.cat([self.begin, self.ids])

    def windows(self, length: int) -> Tensor:
        """Return the non-overlapping windows, int64 (w, length), without the remainder.

        Every window begins as a text does, since models that learned to expect a BOS make nothing
        of a text without one. Raises TextError if that leaves no room for the text.
        """
        own = length - len(self.begin)
        if own < 1:
            raise TextError(
                f"windows of {length} tokens are too short: the tokenizer begins every text with "
                f"{len(self.begin)} of its own"
            )
        cut = self.ids[: len(self.ids) // own * own].view(-1, own)
        return torch.cat([self.begin.expand(len(cut), -1), cut], 1)


class Text(NamedTuple):
    """The tokens of a text, and how it was read."""

    tokens: Tokens
    facts: TextFacts


def read_text(
    source: str,
    use: Use,
    tokenizer: PreTrainedTokenizerBase,
    at_least: int | None = None,
    documents: Iterable[Document] | None = None,
    commit: str | None = None,
) -> Text:
    """Read a text as a model sees it; `documents` are those of the source, at a commit of a data
    set on the hub, if they are known.

    With `at_least`, it is read as far as `tokenize` says; for an evaluation, of which the first
    tokens count, to the end of a word only, however long the document is. Raises TextError as
    `iter_documents`.
    """
    text = hub_text(source)
    rendering = Rendering(tokenizer, text.joins_empty)
    if documents is None:
        commit = commit_of(source)
        split: Split = "evaluation" if use == "evaluation" else "calibration"
        documents = iter_documents(source, split, commit)
    texts, separator = rendering(documents), text.separator
    if use == "evaluation" and at_least is not None:
        texts, separator = _parts(texts, separator), ""
    tokens = tokenize(texts, tokenizer, separator, at_least)
    return Text(tokens, rendering.facts(source, use, commit))


def tokenize(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    separator: str,
    at_least: int | None = None,
) -> Tokens:
    """Return the tokens of the documents joined into ONE text, tokenised as a whole.

    With `at_least`, a stream is read only until its text gives that many tokens; the result has
    fewer if the stream ends first.
    """
    stream, read = iter(documents), list[str]()
    needed = None if at_least is None else at_least + _SPARE_TOKENS
    missing = needed
    while True:
        more = list(_up_to(stream, missing))
        read += more
        ids = _ids(tokenizer, separator.join(read), False)
        if needed is None or len(ids) >= needed or not more:
            begin = _begin(tokenizer)
            return Tokens(*(torch.tensor(found, dtype=torch.long) for found in (begin, ids)))
        missing = needed - len(ids)


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before every text."""
    bare, full = (_ids(tokenizer, "a", special) for special in (False, True))
    starts = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
    return full[: next(starts, 0)]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Tokenise in a thread that ends: tokenizers keep a cache for as long as the thread lives.

    Not verbose: the text is meant to be longer than the model's context, and is cut into windows.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        asked = {"verbose": False, "add_special_tokens": special}
        ids: list[int] = thread.submit(tokenizer, text, **asked).result()["input_ids"]
    return ids


def shared_tokens(
    source: str, tokenizers: Mapping[str, PreTrainedTokenizerBase], at_least: int | None = None
) -> Tokens:
    """Return the tokens of the evaluation text, on which all named tokenizers must agree.

    Raises CheckpointError at the first token that differs, TextError as `iter_documents`.
    """
    commit = commit_of(source)
    streams = itertools.tee(iter_documents(source, "evaluation", commit), len(tokenizers))
    rows = [
        (name, read_text(source, "evaluation", tokenizer, at_least, stream, commit))
        for stream, (name, tokenizer) in zip(streams, tokenizers.items(), strict=True)
    ]
    (first, (tokens, facts)), *others = rows
    if facts.remarks:
        log.info("%s", facts)
    mine = tokens.whole()
    for name, (found, _) in others:
        other = found.whole()
        if not torch.equal(mine, other):
            length = min(len(mine), len(other))
            same = int((mine[:length] == other[:length]).long().cumprod(0).sum())
            raise CheckpointError(
                f"{first} and {name} tokenise {source!r} differently from token {same} on "
                f"({len(mine)} and {len(other)} tokens), so their perplexities do not compare; "
                "name as baseline the model that the checkpoint was made from"
            )
    return tokens


def calibration_windows(
    tokens: Tokens, length: int, count: int, seed: int, purpose: str = "calibration"
) -> Tensor:
    """Return `count` non-overlapping windows of a text, in seeded order: (count, length).

    Raises TextError, which names the `purpose`, if the text has fewer windows.
    """
    windows = tokens.windows(length)
    if len(windows) < count:
        raise TextError(
            f"{purpose} text: {len(tokens.ids)} tokens are {len(windows)} windows of {length}, but "
            f"{count} are asked for; name a longer text, or lower the samples or their length"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


def evaluation_windows(tokens: Tokens, length: int, most: int | None = None) -> Tensor:
    """Return the first non-overlapping windows of a text: (w, length); drop the remainder.

    With `most`, only so many.

    Raises TextError if the text is shorter than one window.
    """
    windows = tokens.windows(length)[:most]
    if not len(windows):
        raise TextError(
            f"evaluation text: {len(tokens.ids)} tokens are less than one window of {length}; "
            "name a longer text, or lower the sequence length"
        )
    return windows


def _parts(documents: Iterable[str], separator: str) -> Iterator[str]:
    """Yield the documents, joined, in parts that end where a word does."""
    for number, document in enumerate(documents):
        for part in _PART.finditer(f"{separator}{document}" if number else document):
            yield part[0]


def _up_to(stream: Iterator[str], tokens: int | None) -> Iterator[str]:
    """Yield documents until they hold about that many tokens, or all of them."""
    size = 0
    for document in stream:
        yield document
        size += len(document)
        if tokens is not None and size >= tokens * _CHARACTERS_PER_TOKEN:
            return
