"""Identities change with what changes numbers, and with nothing else."""

from typing import Any

import pytest

from schemas.request.config import RunConfig
from schemas.run.identity import Ground, Identities, fingerprint, identities

BASE = {"config.json": "aa", "model.safetensors": "bb"}


def config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "output": "out", "ratio": 0.2} | fields)


def of(
    base: dict[str, str] = BASE,
    tokens: str = "cc",
    labels: str | None = "ee",
    dtype: str = "float32",
    device: str = "x86_64",
    torch: str = "2",
    trained: str | None = None,
    adopted: str | None = None,
    **fields: Any,
) -> Identities:
    ground = Ground(
        base_files=base,
        forward_tokens=tokens,
        backward_tokens=labels,
        recovery_tokens=trained,
        adopted=adopted,
        dtype=dtype,
        device=device,
        versions={"torch": torch},
    )
    return identities(config(**fields), ground)


@pytest.mark.parametrize(
    "change",
    [
        {"base": BASE | {"model.safetensors": "dd"}},
        {"base": BASE | {"model-2.safetensors": "dd"}},
        {"torch": "3"},
        {"dtype": "bfloat16"},
        {"device": "NVIDIA H100"},
        {"numerics": {"threads": 2}},
        {"calibration": {"micro_batch": 2}},
        {"calibration": {"segments": 4}},
    ],
)
def test_what_changes_moments_changes_everything(change: dict[str, Any]) -> None:
    before, after = of(), of(**change)
    assert before.forward != after.forward
    assert before.backward != after.backward
    assert before.bases != after.bases
    assert before.factors != after.factors
    assert before.output(config(), 0.2) != after.output(config(), 0.2)


def test_an_output_depends_on_what_had_to_stay_dense_in_it() -> None:
    ids, asked = of(), config(on_failure="keep_dense")
    assert ids == of(on_failure="keep_dense")
    assert ids.output(asked, 0.2, ()) == ids.output(config(), 0.2)
    assert ids.output(asked, 0.2, ["a", "b"]) == ids.output(asked, 0.2, {"b": "", "a": ""})
    found = {ids.output(asked, 0.2, names) for names in ([], ["a"], ["b"], ["a", "b"])}
    assert len(found) == 4


def test_an_output_depends_on_what_is_cut_in_parts() -> None:
    ids = of()
    assert ids.output(config(), 0.2, split={}) == ids.output(config(), 0.2)
    found = {ids.output(config(), 0.2, split=split) for split in ({}, {"a": (1, 2)}, {"a": (3,)})}
    assert len(found) == 3


def test_an_output_depends_on_the_neurons_that_no_device_has_room_to_order() -> None:
    ids = of()
    assert ids.output(config(), 0.2, wide=()) == ids.output(config(), 0.2)
    found = {ids.output(config(), 0.2, wide=wide) for wide in ((), ("a",), ("a", "b"), ("b", "a"))}
    assert len(found) == 3


@pytest.mark.parametrize("factors", ["pivoted", "plain"])
def test_an_output_depends_on_what_its_ranks_are_multiples_of(factors: str) -> None:
    """Pivoted factors too: past the bound they are plain ones of the next lower rank there is."""
    asked = [
        config(factors=factors, allocation={"rank_multiple": multiple})
        for multiple in (None, 1, 16, 64)
    ]
    found = [of(factors=factors, allocation=one.allocation) for one in asked]
    outputs = [ids.output(one, 0.2) for ids, one in zip(found, asked, strict=True)]
    assert outputs[0] == outputs[1] == of(factors=factors).output(config(factors=factors), 0.2)
    assert len(set(outputs)) == 3
    assert len({ids.bases for ids in found}) == 1
    assert len({ids.factors for ids in found}) == (3 if factors == "pivoted" else 1)


def test_the_floor_of_neurons_counts_for_what_is_left_of_them_alone() -> None:
    asked = [config(numerics={"neuron_floor": floor}) for floor in (1e-3, 1e-2)]
    asked += [config(allocation={"method": "loss-aware-ranks"})]
    found = [of(numerics=one.numerics, allocation=one.allocation) for one in asked]
    assert len({ids.bases for ids in found}) == len({ids.factors for ids in found}) == 1
    assert found[0].neurons != found[1].neurons
    assert found[2].neurons is None
    outputs = {ids.output(one, 0.2) for ids, one in zip(found, asked, strict=True)}
    trained = [of(trained="t", numerics=one.numerics, allocation=one.allocation) for one in asked]
    assert len(outputs) == len({ids.recovery for ids in trained}) == len(asked)


def test_each_stream_depends_on_its_own_tokens() -> None:
    assert of(tokens="dd").forward != of().forward
    assert of(tokens="dd").backward == of().backward
    for change in ({"labels": "dd"}, {"seed": 1}):
        assert of(**change).forward == of().forward
        assert of(**change).backward != of().backward
        assert of(**change).bases != of().bases


def test_without_gradients_there_is_no_backward_stream() -> None:
    ids = of(labels=None)
    assert ids.moments("forward") == ids.forward
    with pytest.raises(ValueError, match="no gradients"):
        ids.moments("backward")


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": "input-only"},
        {"numerics": {"shrinkage": 0.2}},
        {"numerics": {"input_shrinkage": 0.2}},
    ],
)
def test_what_changes_the_cut_leaves_the_moments(change: dict[str, Any]) -> None:
    before, after = of(), of(**change)
    assert (before.forward, before.backward) == (after.forward, after.backward)
    assert before.bases != after.bases
    assert before.factors != after.factors


@pytest.mark.parametrize("change", [{"factors": "plain"}, {"numerics": {"pivot_bound": 10.0}}])
def test_what_changes_the_encoding_leaves_the_bases(change: dict[str, Any]) -> None:
    before, after = of(), of(**change)
    assert before.bases == after.bases
    assert before.factors != after.factors


@pytest.mark.parametrize(
    "change",
    [
        {"model": "elsewhere/m"},
        {"revision": "main"},
        {"output": "elsewhere"},
        {"run_dir": "elsewhere"},
        {"ratio": [0.4, 0.6]},
        {"cluster": {"workers": 3, "item_timeout_s": 5.0, "address": "auto"}},
        {"calibration": {"text": "other.txt"}},
    ],
)
def test_what_changes_no_number_changes_nothing(change: dict[str, Any]) -> None:
    """Text counts by its tokens, and a model by its files, wherever they are."""
    assert of(**change) == of()


def test_the_least_that_a_rank_removes_counts() -> None:
    def output(method: str, least: float) -> str:
        return of().output(config(allocation={"method": method, "min_ratio": least}), 0.2)

    for method in ("loss-aware", "loss-aware-ranks"):
        assert len({output(method, least) for least in (0.0, 0.25, 0.4)}) == 3


def test_a_setting_that_is_not_used_changes_nothing() -> None:
    unused = {"shrinkage": 0.0, "input_shrinkage": 0.0, "pivot_bound": 2.0}
    assert of(method="svd-llm", numerics=unused) == of(method="svd-llm")


def test_the_order_of_the_base_files_does_not_matter() -> None:
    assert of(base=dict(reversed(BASE.items()))) == of()


@pytest.mark.parametrize(
    ("fields", "ratio"), [({"allocation": {"method": "uniform"}}, 0.2), ({}, 0.3), ({}, 0.0)]
)
def test_an_output_depends_on_ratio_and_allocation(fields: dict[str, Any], ratio: float) -> None:
    assert of().output(config(), 0.2) != of().output(config(**fields), ratio)


def test_an_output_does_not_depend_on_the_other_ratios() -> None:
    assert of().output(config(ratio=[0.2, 0.4]), 0.2) == of().output(config(), 0.2)


def test_an_output_depends_on_how_its_factors_were_trained() -> None:
    def by(tokens: str = "ff", **settings: Any) -> Identities:
        return of(trained=tokens, recovery={"enabled": True} | settings)

    cut, trained = of(), by()
    assert cut.recovery is None
    assert trained.factors == cut.factors  # which it starts from
    outputs = {
        ids.output(config(), 0.2)
        for ids in (
            cut,
            trained,
            by("gg"),
            by(batch=2),
            of(trained="ff", refinement={"enabled": True}),
            of(trained="ff", refinement={"enabled": True}, recovery={"enabled": True}),
        )
    }
    assert len(outputs) == 6
    updates = [by(method="svd-llm", **own) for own in ({}, {"order": "one-pass"}, {"lora_rank": 4})]
    assert len({ids.recovery for ids in (trained, *updates)}) == 4
    assert by(micro_batch=2, checkpointing=False, text=["elsewhere/same.txt"]) == trained


def test_a_fingerprint_is_16_hexadecimal_digits_of_the_content() -> None:
    assert fingerprint({"b": 1, "a": [None, 2.5]}) == fingerprint({"a": [None, 2.5], "b": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert len(fingerprint(0)) == 16
    assert int(fingerprint(0), 16) >= 0


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """Python's own hash of a string is not."""
    assert fingerprint({"a": "b"}) == "db4a7ecb114bc66c"


def test_adopted_factors_are_those_of_their_checkpoint() -> None:
    asked: dict[str, Any] = {"trained": "tt", "adopt": "cut", "recovery": {"enabled": True}}
    one, other = (of(**asked, adopted=name) for name in ("aa", "bb"))
    assert one.factors == one.bases != other.factors
    assert one.recovery != other.recovery
    assert one.taught == other.taught == of(trained="tt").taught
    assert one.factors == of(**asked, adopted="aa", truncation="input-only").factors
    assert one.factors != of(trained="tt").factors


def test_what_is_cut_further_is_in_everything_but_what_the_base_teaches() -> None:
    further: dict[str, Any] = {"trained": "tt", "rounds": 2, "recovery": {"enabled": True}}
    none, one, other = (of(**further, adopted=name) for name in (None, "aa", "bb"))
    for two in ((none, one), (one, other)):
        for name in ("forward", "backward", "bases", "factors", "recovery"):
            assert len({getattr(ids, name) for ids in two}) == 2
    assert none.taught == one.taught == other.taught
    again = of(trained="tt", recovery={"enabled": True})
    assert again == none  # the number of rounds changes no number


@pytest.mark.parametrize("how", [{"recovery": {}}, {"refinement": {"enabled": True}}])
def test_trained_norms_are_in_the_identity_of_a_recovery(how: dict[str, Any]) -> None:
    asked = {"enabled": "refinement" not in how}
    found = {
        of(trained="tt", **how | {"recovery": asked | {"norms": norms}}).recovery
        for norms in (False, True)
    }
    assert len(found) == 2
