"""Texts with a share each: what is read of them, and the windows of all."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemas.errors import TextError
from schemas.request.texts import shares_of, split
from schemas.run.texts import TextFacts
from workers.text.rows import Document
from workers.text.sources import is_local
from workers.text.windows import Tokens, calibration_windows, read_text


class Mixture(NamedTuple):
    """The tokens of some texts, their shares, and how each was read."""

    tokens: dict[str, Tokens]
    shares: dict[str, float]
    facts: list[TextFacts]

    def windows(self, length: int, count: int, seed: int, purpose: str = "calibration") -> Tensor:
        """Return `count` windows (count, length), each text's part of them one after the other.

        Raises TextError, which names the `purpose`, if a text has fewer windows or gets none.
        """
        found = []
        for name, part in split(count, self.shares).items():
            what = purpose if len(self.shares) == 1 else f"{purpose} ({name})"
            if count and not part:
                raise TextError(
                    f"{what} text: {count} windows are fewer than the {len(self.shares)} texts; "
                    "ask for more windows"
                )
            found.append(calibration_windows(self.tokens[name], length, part, seed, what))
        return torch.cat(found)


def read_mixture(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    wanted: Sequence[tuple[int, int]],
    documents: dict[str, list[Document]] | None = None,
) -> Mixture:
    """Read calibration texts, local ones whole and others as far as they are `wanted`: for some
    numbers of windows, each with its length. `documents` are those of texts that were read before;
    they are taken out.

    Raises TextError as `read_text` does.
    """
    shares, found = shares_of(texts), dict[str, Tokens]()
    facts = []
    for name in shares:
        least = max(split(count, shares)[name] * length for count, length in wanted)
        tokens, how = read_text(
            name,
            "calibration",
            tokenizer,
            at_least=None if is_local(name) else least,
            documents=None if documents is None else documents.pop(name, None),
        )
        found[name] = tokens
        facts.append(how)
    return Mixture(found, shares, facts)
