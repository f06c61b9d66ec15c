"""Rotary embeddings whose frequencies depend on how long a text is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kinds import model_class, tiny_causal_model
from workers.model.inspection import inspect
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "short_mscale": 1.2,
    "long_mscale": 1.4,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", DYNAMIC),
    ("gemma3_text", {"full_attention": DYNAMIC, "sliding_attention": DEFAULT}),
    ("phimoe", LONG),
]


@pytest.mark.parametrize(("kind", "parameters"), CASES)
@torch.no_grad()
def test_shards_compute_what_the_whole_model_does_at_any_length(
    kind: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """Below and above the 64 tokens that it was made for, and after longer texts."""
    tiny_causal_model(kind, rope_parameters=parameters).save_pretrained(tmp_path)
    model = model_class(kind).from_pretrained(tmp_path, dtype=torch.float32).eval()
    decoder = Decoder(tmp_path, inspect(tmp_path), torch.float32, torch.device("cpu"))
    first, last = Shard(decoder, range(1), []), Shard(decoder, range(1, 3), [])
    generator = torch.Generator().manual_seed(1)
    for length in (12, 96, 80, 12):
        tokens = torch.randint(3, 120, (2, length), generator=generator)
        hidden = first.forward(tokens, Step(0, 0), "output")
        logits = last.tail(last.forward(hidden, Step(0, 0), "output"))
        assert torch.equal(logits, model(input_ids=tokens).logits)
