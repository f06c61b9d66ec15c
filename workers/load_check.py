"""Loads a compressed checkpoint as a stranger would: a script for `python -I`, with no project
beside it.

    python -I load_check.py CHECKPOINT [--shapes-only] [--base FOLDER]

Prints one JSON list of {"name", "passed", "detail"}. Imports torch and transformers only.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig

AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM

_TEXT = "The city lies on the river"
_NEW_TOKENS = 32
_PROMPT = [11, 7, 5, 3, 2, 13, 17, 19, 23, 29]


def main(folder: Path, shapes_only: bool, base: Path | None) -> list[dict[str, Any]]:
    """Every check in turn; a failing one does not stop the next. A `base` continues a text, too."""
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("names and shapes on the meta device", lambda: _shapes(folder)),
        ("refuses to load without trust_remote_code", lambda: _refuses(folder)),
        ("tokenizer loads without trust_remote_code", lambda: _tokenizer(folder)),
    ]
    if not shapes_only:
        found: dict[str, Any] = {}
        checks += [
            ("loads with plain transformers", lambda: _load(folder, found)),
            ("stored dtype kept", lambda: _dtype(found["model"])),
            ("save_pretrained round trip", lambda: _round_trip(found["model"])),
            ("finite loss", lambda: _finite(found["model"])),
            ("generation with and without cache agree", lambda: _cache(found["model"])),
            ("left padding changes nothing", lambda: _padding(found["model"])),
            ("continues a text", lambda: _continue(folder, found.pop("model"))),
        ]
        if base is not None:
            checks.append(("the base continues a text", lambda: _continue_base(base)))
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "passed": True, "detail": check()}
    except Exception as error:  # noqa: BLE001 (a check reports its failure, whatever it is)
        return {"name": name, "passed": False, "detail": f"{type(error).__name__}: {error}"}


def _shapes(folder: Path) -> str:
    stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                stored[name] = tuple(file.get_slice(name).get_shape())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected = {name: shape for name, shape in expected.items() if name != "lm_head.weight"}
    different = sorted(
        name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name)
    )
    if different:
        name = different[0]
        raise ValueError(
            f"{len(different)} tensors differ, the first {name}: "
            f"in the files {stored.get(name)}, in the model {expected.get(name)}"
        )
    return f"{len(stored)} tensors"


def _refuses(folder: Path) -> str:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        return "it asks for trust_remote_code"
    raise ValueError("it loaded, with weights that cannot be right")


def _tokenizer(folder: Path) -> str:
    AutoConfig.from_pretrained(folder, trust_remote_code=False)  # fails where AutoTokenizer asks
    return type(transformers.AutoTokenizer.from_pretrained(folder)).__name__


def _load(folder: Path, found: dict[str, Any]) -> str:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", output_loading_info=True
    )
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"keys not as they should be: {wrong}")
    found["model"] = model.eval()
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def _dtype(model: Any) -> str:
    stored = model.config.dtype
    different = [name for name, p in model.named_parameters() if p.dtype != stored]
    if different:
        raise ValueError(f"{different[0]} is not {stored}")
    return str(stored).removeprefix("torch.")


def _tokens(model: Any) -> torch.Tensor:
    vocabulary: int = model.config.vocab_size
    return torch.tensor([_PROMPT]) % vocabulary


@torch.no_grad()
def _finite(model: Any) -> str:
    model.float()  # the checks from here on compare numbers of different computations
    tokens = _tokens(model)
    loss = model(tokens, labels=tokens).loss
    if not torch.isfinite(loss):
        raise ValueError(f"loss is {float(loss)}")
    return f"{float(loss):.3f} nats"


def _greedy(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    output = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    new: torch.Tensor = output[:, tokens.shape[1] :]
    return new


def _cache(model: Any) -> str:
    tokens = _tokens(model)
    mask = torch.ones_like(tokens)
    if not torch.equal(
        _greedy(model, tokens, mask, use_cache=True), _greedy(model, tokens, mask, use_cache=False)
    ):
        raise ValueError("greedy tokens differ")
    return "8 greedy tokens"


def _continue(folder: Path, model: Any) -> str:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(_TEXT, return_tensors="pt")["input_ids"]
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=0,
    )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def _continue_base(folder: Path) -> str:
    return _continue(folder, AutoModelForCausalLM.from_pretrained(folder, dtype="auto").float())


def _padding(model: Any) -> str:
    tokens = _tokens(model)
    short = tokens[:, 4:]
    padded = torch.cat([torch.zeros_like(tokens[:, :4]), short], 1)
    mask = torch.ones_like(tokens)
    both = torch.cat([tokens, padded])
    mask = torch.cat([mask, (torch.arange(tokens.shape[1]) >= 4).long()[None]])
    alone = [_greedy(model, row, torch.ones_like(row)) for row in (tokens, short)]
    if not torch.equal(_greedy(model, both, mask), torch.cat(alone)):
        raise ValueError("greedy tokens of a padded batch differ from those of its rows alone")
    return "batch of 2, 8 greedy tokens"


@torch.no_grad()
def _round_trip(model: Any) -> str:
    tokens = _tokens(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
        if again.dtype != model.dtype:
            raise ValueError(f"saved as {model.dtype}, loaded as {again.dtype}")
        if not torch.equal(again.eval()(tokens).logits, model(tokens).logits):
            raise ValueError("logits differ after saving and loading")
    return f"equal logits, {again.dtype}".replace("torch.", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes-only", action="store_true")
    parser.add_argument("--base", type=Path)
    print(json.dumps(main(**vars(parser.parse_args()))))
