"""Loads a compressed checkpoint as a stranger would: a script for `python -I`, without the project.

    python -I load_check.py CHECKPOINT shapes|part|whole MEMORY [--save] [--dozen] [--base FOLDER]

Prints {"name", "passed", "detail"} for every check, one JSON object per line, as soon as it is
done; `passed` is null if this host could not do it. A dozen texts are a field, too: "written".
Imports torch and transformers only.
"""

import argparse
import contextlib
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
for kernels in ("causal_conv1d", "fla", "mamba_ssm"):  # not imported: they fail on a CPU
    sys.modules[kernels] = None  # type: ignore[assignment]

import torch  # noqa: E402
import transformers  # noqa: E402

_CONTINUATIONS = Path(__file__).parents[1] / "evaluation/continuations.py"
_PART = Path(__file__).with_name("load_part.py")
_GREEDY = 4
_PROMPT = [11, 7, 5, 3, 2, 13, 17, 19, 23, 29]
_PADDED = 4  # places of padding in the second row
_COPIES = 2  # of a part: as read, and as loaded
_OWN_CODE = "modeling_lowrank.py"

Row = dict[str, Any]


def main(
    folder: Path, depth: str, memory: int, save: bool, base: Path | None, dozen: bool = False
) -> Iterator[Row]:
    """Run every check in turn; a failure stops only the checks that need what it loads.

    `depth` is "shapes" for names and shapes, "part" to load the first and the last layer too,
    "whole" for the whole model; `memory` bounds a part, in bytes. With `save` the model is saved to
    a temporary folder and read back. It continues a text, or a `dozen`; with a `base`, both do so.
    """
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: dict[str, Any] = {}
    quantised = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    yield _run("names and shapes on the meta device", lambda: _shapes(folder))
    if (folder / _OWN_CODE).is_file():
        yield _run("refuses to load without trust_remote_code", lambda: _refuses(folder))
    yield _run("tokenizer loads without trust_remote_code", lambda: _tokenizer(folder))
    if depth == "part":
        name = "first and last layer load with plain transformers"
        yield _run(name, lambda: _load_part(folder, memory, found, quantised))
    if depth == "whole":
        dtype = _loaded_as(quantised) if quantised else "auto"
        yield _run("loads with plain transformers", lambda: _load(folder, found, dtype))
    if not found:
        return
    if not quantised:
        yield _run("stored dtype kept", lambda: _dtype(found["model"]))
    if save:
        yield _run("save_pretrained round trip", lambda: _round_trip(found["model"]))
    cast = depth == "whole" and not quantised
    yield _run("finite loss", lambda: _finite(found["model"], exact=cast))
    if depth == "whole":
        if not quantised or _is_exact(quantised):
            name = "neither cache nor padding changes a token"
            yield _run(name, lambda: _greedy(found["model"]))
        several = dozen or base is not None
        yield _run("continues a text", lambda: _continue(folder, several, found.pop("model")))
        if base:
            yield _run("the base continues a text", lambda: _continue(base, True))


def _run(name: str, check: Callable[[], str | Row]) -> Row:
    try:
        said = check()
        found = said if isinstance(said, dict) else {"detail": said}
        return {"name": name, "passed": True, **found}
    except Exception as error:  # noqa: BLE001 (a check reports its failure, whatever it is)
        passed = None if _is_of_the_host(error) else False
        return {"name": name, "passed": passed, "detail": f"{type(error).__name__}: {error}"}


def _is_of_the_host(error: Exception) -> bool:
    """Whether this host could not do a check, which says nothing about the checkpoint."""
    by_system = isinstance(error, OSError) and error.errno is not None
    unable = isinstance(error, (MemoryError, _Unlike))
    return by_system or unable or "DefaultCPUAllocator" in str(error)


def _shapes(folder: Path) -> str:
    """Load the headers of the files, whose tensors have no values here, as weights are loaded."""
    stored = runpy.run_path(str(_PART))["shapes_of"](folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model, info = type(_on_meta(folder, config)).from_pretrained(
        None,
        config=config,
        state_dict=dict(stored),
        device_map="meta",
        ignore_mismatched_sizes=True,  # they are reported below
        output_loading_info=True,
    )
    _require_match(info)
    for name, tensor in model.state_dict().items():
        if name in stored and stored[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} is of another kind in the files than in the model")
    return f"{len(stored)} tensors"


def _auto(folder: Path) -> Any:
    """Return the class that loads a checkpoint with all its parts."""
    told = json.loads((folder / "config.json").read_bytes())
    names: Any = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    sees = told.get("model_type") in names and "low_rank" not in told
    return getattr(transformers, f"AutoModelFor{'ImageTextToText' if sees else 'CausalLM'}")


def _on_meta(folder: Path, config: Any) -> Any:
    with torch.device("meta"):
        return _auto(folder).from_config(config, trust_remote_code=True)


def _refuses(folder: Path) -> str:
    try:
        _auto(folder).from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        return "it asks for trust_remote_code"
    raise ValueError("it loaded, with weights that cannot be right")


def _tokenizer(folder: Path) -> str:
    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)  # fails if it needs it
    return type(transformers.AutoTokenizer.from_pretrained(folder)).__name__


def _loaded_as(quantised: dict[str, Any]) -> torch.dtype:
    """Return the dtype of a quantised model, which is not cast later; NVFP4 gives bfloat16."""
    return torch.bfloat16 if str(quantised.get("format")).startswith("nv") else torch.float32


def _is_exact(quantised: dict[str, Any]) -> bool:
    """Whether no small difference becomes a large one: no input is rounded."""
    groups = quantised.get("config_groups", {}).values()
    rounds = any(group.get("input_activations") for group in groups)
    return not rounds and _loaded_as(quantised) == torch.float32


def _load(folder: Path, found: dict[str, Any], dtype: Any) -> str:
    model, info = _auto(folder).from_pretrained(
        folder, trust_remote_code=True, dtype=dtype, output_loading_info=True
    )
    return _loaded(model, info, found)


def _load_part(folder: Path, memory: int, found: dict[str, Any], quantised: Any = None) -> str:
    """Load a model of the first and the last layer, with the class that the checkpoint ships.

    Raises MemoryError if it does not fit `memory`, and _Unlike if it is no part of the whole one.
    """
    if quantised:
        raise _Unlike("the schemes of a quantised model are those of its layers by their numbers")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    shared = runpy.run_path(str(_PART))
    try:
        layers = shared["keep_two_layers"](config)
        model = _on_meta(folder, config)
    except (LookupError, ValueError) as error:  # a layer may be unlike others by its number
        raise _Unlike(f"a model of two layers is no part of this one: {error}") from error
    size = sum(t.numel() for t in model.state_dict().values()) * config.dtype.itemsize
    if size * _COPIES > memory:
        raise MemoryError(f"layers {layers} take {size * _COPIES:,} bytes, {memory:,} are free")
    model, info = type(model).from_pretrained(
        None,
        config=config,
        state_dict=shared["tensors_of"](folder, layers),
        dtype=config.dtype,
        ignore_mismatched_sizes=True,  # they are reported below
        output_loading_info=True,
    )
    try:
        parameters = _loaded(model, info, found)
    except ValueError as error:
        raise _Unlike(f"a model of two layers is no part of this one: {error}") from error
    return f"layers {' and '.join(map(str, layers))}, {parameters}"


class _Unlike(Exception):  # noqa: N818 (the checkpoint is not at fault)
    pass


def _loaded(model: Any, info: dict[str, Any], found: dict[str, Any]) -> str:
    _require_match(info)
    found["model"] = model.eval()
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def _require_match(info: dict[str, Any]) -> None:
    if wrong := {name: sorted(map(str, keys)) for name, keys in info.items() if keys}:
        raise ValueError(f"keys not as they should be: {wrong}")


def _dtype(model: Any) -> str:
    """Compare parameters. Classes keep some in float32, but neither an embedding nor a factor."""
    stored, table = model.config.dtype, model.get_input_embeddings().weight
    for name, p in model.named_parameters():
        narrow = p is table or name.endswith((".down.weight", ".up.weight", ".dense.weight"))
        if p.dtype not in (stored, stored if narrow else torch.float32):
            raise ValueError(f"{name} is not {stored}")
    return str(stored).removeprefix("torch.")


def _tokens(model: Any) -> torch.Tensor:
    return torch.tensor([_PROMPT]) % int(model.config.get_text_config().vocab_size)


@torch.no_grad()
def _finite(model: Any, exact: bool) -> str:
    """Compute a loss, in float32 if later checks compare numbers (`exact`). Otherwise bfloat16 has
    its range in half the memory; float16 does not.
    """
    if exact:
        model.float()
    elif model.dtype == torch.float16:
        model.bfloat16()
    tokens = _tokens(model)
    loss = model(tokens, labels=tokens, use_cache=False).loss  # caches want a layer of attention
    if not torch.isfinite(loss):
        raise ValueError(f"loss is {float(loss)}")
    return f"{float(loss):.3f} nats"


@torch.no_grad()
def _greedy(model: Any) -> str:
    """Compare a batch, with its second row padded, with a pass over each row without a cache."""
    tokens = _tokens(model).repeat(2, 1)
    mask = torch.ones_like(tokens)
    tokens[1, :_PADDED], mask[1, :_PADDED] = 0, 0
    output = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=_GREEDY,
        min_new_tokens=_GREEDY,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(output.logits, 1).argmax(-1)
    for row, start in ((0, 0), (1, _PADDED)):
        alone = model(output.sequences[row : row + 1, start:-1], use_cache=False).logits
        if not torch.equal(alone[0, -_GREEDY:].argmax(-1), best[row]):
            raise ValueError(f"greedy tokens of row {row} differ from those of one pass over it")
    return f"batch of 2, {_GREEDY} greedy tokens"


def _continue(folder: Path, dozen: bool, model: Any = None) -> Row:
    if model is None:
        model = _auto(folder).from_pretrained(folder, dtype="auto").float()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    shared = runpy.run_path(str(_CONTINUATIONS))
    if not dozen:
        prompt, tokens = shared["PROMPTS"][0], shared["SAMPLE_TOKENS"]
        return {"detail": shared["sample"](model, tokenizer, prompt, tokens)}
    written = shared["written"](model, tokenizer)
    return {"detail": written.pop("sample"), "written": written}


@torch.no_grad()
def _round_trip(model: Any) -> str:
    tokens = _tokens(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = _auto(Path(folder)).from_pretrained(folder, trust_remote_code=True, dtype="auto")
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
        # Where values lie in memory decides how products are rounded, so not to the last bit.
        one, other = (m(tokens, use_cache=False).logits for m in (again.eval(), model))
        torch.testing.assert_close(one, other)
    return f"equal values, {again.dtype}".replace("torch.", "")


if __name__ == "__main__":
    parser, output = argparse.ArgumentParser(), sys.stdout
    parser.add_argument("folder", type=Path)
    parser.add_argument("depth", choices=("shapes", "part", "whole"))
    parser.add_argument("memory", type=int)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--dozen", action="store_true")
    parser.add_argument("--base", type=Path)
    with contextlib.redirect_stdout(sys.stderr):
        for row in main(**vars(parser.parse_args())):
            print(json.dumps(row), file=output, flush=True)
