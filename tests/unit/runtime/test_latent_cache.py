"""The latent cache of a checkpoint's own code: the logits of an ordinary one, from fewer bytes."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from tests.low_rank import GREEDY, PROMPTS, make_checkpoint

HEADS = {"num_key_value_heads": 4}  # so that keys are 32 wide, with latents of 16
STEPS = {**GREEDY, "max_new_tokens": 8, "min_new_tokens": 8}
SHOWN = {"return_dict_in_generate": True, "output_logits": True}


def made(folder: Path, kind: str = "llama", **fields: Any) -> Any:
    encodings = fields.pop("encodings", ("plain", "pivoted", "dense"))
    return make_checkpoint(folder / kind, kind, encodings, **(HEADS | fields)).load()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("latent"), num_hidden_layers=3)


def require_equal(model: Any, **options: Any) -> Any:
    """The logits of all steps and the tokens are those of an ordinary cache; returns the cache."""
    ordinary = model.generate(**PROMPTS, **STEPS, **SHOWN, **options)
    cache = model.latent_cache()
    found = model.generate(**PROMPTS, **STEPS, **SHOWN, **options, past_key_values=cache)
    assert torch.equal(found.sequences, ordinary.sequences)
    for mine, theirs in zip(found.logits, ordinary.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    return cache


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}}),
        ("mistral", {"sliding_window": 4}),
        ("mistral", {"sliding_window": None, "encodings": ("pivoted", "pivoted-columns")}),
        ("qwen2", {"encodings": ("plain",)}),
        ("phi", {}),
        ("stablelm", {}),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
    ],
)
def test_logits_are_those_of_an_ordinary_cache(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Of a batch with padding on the left, beyond a window."""
    require_equal(made(tmp_path, kind, **fields))


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"prefill_chunk_size": 2}, {"num_return_sequences": 1}]
)
def test_every_way_to_generate(llama: Any, options: dict[str, Any]) -> None:
    require_equal(llama, **options)


def test_tokens_can_be_taken_back(llama: Any) -> None:
    one = PROMPTS["input_ids"][1:]
    expected = llama.generate(one, **STEPS)
    cache = llama.latent_cache()
    found = llama.generate(one, **STEPS, prompt_lookup_num_tokens=2, past_key_values=cache)
    assert torch.equal(found, expected)


def test_a_draft_is_taken_back_beyond_its_window(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "mistral", ("plain",), sliding_window=4, **HEADS)
    model, draft = checkpoint.load(), checkpoint.load()
    draft.config.latent_cache = True
    one, steps = PROMPTS["input_ids"][1:], {**STEPS, "max_new_tokens": 16, "min_new_tokens": 16}
    with torch.no_grad():
        draft.lm_head.up.weight.mul_(torch.linspace(0.5, 1.5, 64)[:, None])  # so that it errs
    expected = model.generate(one, **steps)
    assert torch.equal(model.generate(one, **steps, assistant_model=draft), expected)


def test_the_first_layers_draft(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = PROMPTS["input_ids"][1:]
    expected = llama.generate(one, **STEPS)
    monkeypatch.setattr(llama.config, "latent_cache", True)
    found = llama.generate(one, **STEPS, **SHOWN, assistant_early_exit=1)
    assert type(found.past_key_values).__name__ == "LatentCache"
    assert torch.equal(found.sequences, expected)


@torch.no_grad()
def test_a_copy_goes_on_from_the_same_prompt(llama: Any) -> None:
    prompt = PROMPTS["input_ids"][1:]
    cache = llama.latent_cache()
    llama(prompt[:, :4], past_key_values=cache)
    expected = llama.generate(prompt, **STEPS)
    for _ in range(2):
        again = copy.deepcopy(cache)
        assert torch.equal(llama.generate(prompt, **STEPS, past_key_values=again), expected)
    assert cache.get_seq_length() == 4


def test_bytes_are_as_computed(llama: Any) -> None:
    cache, ordinary = llama.latent_cache(), DynamicCache(config=llama.config)
    layers: Any = ordinary.layers
    for each in (cache, ordinary):
        llama(**PROMPTS, past_key_values=each)
    size, tokens = cache.bytes_per_token, PROMPTS["input_ids"].numel()
    assert cache.nbytes == tokens * size.latent
    held = sum(int(tensor.nbytes) for layer in layers for tensor in (layer.keys, layer.values))
    assert held == tokens * size.ordinary
    kept = [
        getattr(layer.self_attn, name).rank or 32
        for layer in llama.model.layers
        for name in ("k_proj", "v_proj")
    ]
    assert {16, 32} <= set(kept)
    assert size.latent == 4 * (sum(kept) + 1) < size.ordinary == 4 * 32 * 6
    cache.reset()
    assert cache.nbytes == 0


def test_a_configuration_asks_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made(tmp_path)
    expected = model.generate(**PROMPTS, **STEPS)
    checkpoint = tmp_path / "llama"
    model.config.latent_cache = True
    found = model.generate(**PROMPTS, **STEPS, **SHOWN)
    assert type(found.past_key_values).__name__ == "LatentCache"
    assert torch.equal(found.sequences, expected)
    model.config.save_pretrained(checkpoint)
    again = type(model).from_pretrained(checkpoint)
    assert again.config.latent_cache
    assert not type(model).from_pretrained(checkpoint, latent_cache=False).config.latent_cache
    for nothing in ({"use_cache": True}, {"past_key_values": None}, {"use_cache": None}):
        found = model.generate(**PROMPTS, **STEPS, **SHOWN, **nothing)
        assert type(found.past_key_values).__name__ == "LatentCache"
    none = model.generate(**PROMPTS, **STEPS, **SHOWN, use_cache=False)
    assert none.past_key_values is None
    own = DynamicCache(config=model.config)
    named = model.generate(**PROMPTS, **STEPS, **SHOWN, past_key_values=own)
    assert named.past_key_values is own


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_settings_of_generation_ask_for_another_cache_or_none(
    llama: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """What goes through a cache again at every step would be in it several times."""
    expected = llama.generate(**PROMPTS, **STEPS)
    monkeypatch.setattr(llama.config, "latent_cache", True)
    asked = GenerationConfig(**STEPS, **SHOWN, **settings)  # type: ignore[no-untyped-call]
    found = [
        llama.generate(**PROMPTS, generation_config=asked),
        llama.generate(PROMPTS["input_ids"], asked, attention_mask=PROMPTS["attention_mask"]),
    ]
    for name, value in settings.items():
        monkeypatch.setattr(llama.generation_config, name, value)
    found.append(llama.generate(**PROMPTS, **STEPS, **SHOWN))
    for one in found:
        assert torch.equal(one.sequences, expected)
        assert type(one.past_key_values).__name__ != "LatentCache"


def test_it_stays_off_where_latents_are_no_narrower(tmp_path: Path) -> None:
    model = made(tmp_path, encodings=("dense",))
    model.config.latent_cache = True
    found = model.generate(**PROMPTS, **STEPS, **SHOWN)
    assert type(found.past_key_values) is DynamicCache


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("qwen3", {}, "k_proj: this attention does more to its output than to rotate keys"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}},
            "rotary embedding 'dynamic' changes",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused(
    kind: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = made(tmp_path, kind, **fields, encodings=("plain",))
    model.config.latent_cache = True
    with pytest.raises(ValueError, match=f"{message}.*latent_cache=False"):
        model.generate(**PROMPTS, **STEPS)


def test_a_model_whose_own_tensors_are_offloaded_is_refused(llama: Any) -> None:
    model = copy.deepcopy(llama)
    model.model.layers[0].self_attn.k_proj.to("meta")
    with pytest.raises(ValueError, match="k_proj: parts of it are offloaded"):
        model.latent_cache()


def test_a_key_that_is_not_rotated_is_found_after_a_prompt_of_one_token(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At position 0 a rotated key is one that is not."""
    cache = llama.latent_cache()
    for layer in cache.layers:
        layer.rotate = lambda states, _: states
    with pytest.raises(ValueError, match="does more"):
        llama.generate(PROMPTS["input_ids"][1:, :1], **STEPS, past_key_values=cache)


def test_nothing_is_left_on_a_model(llama: Any) -> None:
    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in llama.modules())

    cache = llama.latent_cache()
    assert hooks() > 0
    del cache
    assert hooks() == 0


def test_threads_share_a_model(llama: Any) -> None:
    rows = [PROMPTS["input_ids"][1:, first:] for first in range(4)]
    expected = [llama.generate(row, **STEPS) for row in rows]

    def generate(row: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = llama.generate(row, **STEPS, past_key_values=llama.latent_cache())
        return found

    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(generate, rows), expected, strict=True):
            assert torch.equal(found, one)
