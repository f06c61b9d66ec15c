"""The model card: what it takes over from the base and from the request is text, and no more."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.report.card import front_matter, write_card
from schemas.request.groups import CalibrationConfig
from schemas.request.recovery import RefinementConfig
from tests import reports


@pytest.mark.parametrize(
    "card", [b"2024-99-99", b"[" * 1500, b"license: [{a: b}, 3]", b"a: \xff", b"- 1", b"license: 3"]
)
def test_a_strange_card_of_the_base_is_left_out(card: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n" + card + b"\n---\n")
    found = front_matter(tmp_path, "org/name")
    assert found.keys() == {"base_model", "library_name", "tags"}
    assert found["base_model"] == "org/name"


def test_a_base_that_another_machine_has_is_no_hub_id(tmp_path: Path) -> None:
    assert front_matter(tmp_path, "/shared/elsewhere/Llama-3-8B")["base_model"] == "Llama-3-8B"


def test_what_a_card_keeps_of_the_base_cannot_end_its_front_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text('---\nlicense: "mit\\n# \\x1b[2J"\n---\n')
    found = front_matter(tmp_path, "org/na\nme")
    assert found["license"] == r"mit # \x1b[2J"
    assert found["base_model"] == "org/na me"


@pytest.mark.parametrize("measured", [True, False])
def test_a_card_has_the_perplexity_that_was_measured_and_a_link(
    measured: bool, tmp_path: Path
) -> None:
    done = reports.compression(reports.matrices(1))
    evaluation = reports.evaluation() if measured else None
    write_card(tmp_path, tmp_path, done, evaluation)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ("| perplexity | 22.59 | 25.90 |\n\n" in text) == measured
    assert (
        "\nPerplexity on test.txt, 16 windows of 1024 tokens, in float32; KL(base ‖ compressed) "
        "0.1200 nats a token.\n" in text
    ) == measured
    assert "| bytes of weights | 3,000,000 | 2,600,000 |\n" in text
    assert "\nAsked: ratio 0.2" in text
    assert f"Calibrated on {Path(*done.calibration.text).name},\n" in text
    assert "[report.html](report.html)" in text


def test_a_card_says_how_far_what_they_write_repeats_itself(tmp_path: Path) -> None:
    done = reports.compression(reports.matrices(1))
    write_card(tmp_path, tmp_path, done, reports.wrote(reports.evaluation()))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        "| perplexity | 22.59 | 25.90 |\n"
        "| repetition (seq-rep-4), greedy / sampled | 0.08 / 0.00 | 0.42 / 0.00 |\n"
        "| degenerate of 12, greedy / sampled | 1 / 0 | 5 / 0 |\n"
        "| ended within 16 tokens, of 12, greedy / sampled | 1 / 1 | 1 / 1 |\n\nPerplexity"
    ) in text
    assert "nats a token. Repetition: the share of 4-grams of tokens that occurred before\n" in text
    assert "mean over 12 prompts; [report.html](report.html) shows the texts.\n\nAsked" in text


def test_the_hub_reads_the_perplexity_of_a_card(tmp_path: Path) -> None:
    done = reports.compression(reports.matrices(1))
    write_card(tmp_path, tmp_path, done, reports.evaluation())
    [found] = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (found.dataset_name, found.metric_type, found.metric_value) == (
        *("test.txt", "perplexity"),
        25.9,
    )
    write_card(tmp_path, tmp_path, done)
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


def test_a_card_is_headed_by_what_was_removed(tmp_path: Path) -> None:
    """Also if the ratio that was asked for is of some matrices alone."""
    done = reports.compression(reports.matrices(1))
    done = done.model_copy(update={"ratio": 0.2, "removed": 0.514})
    write_card(tmp_path, tmp_path, done)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ", 51.4 % of its targeted parameters removed\n" in text


def test_a_prediction_is_not_compared_with_what_training_made_of_it(tmp_path: Path) -> None:
    done = reports.compression(reports.matrices(1)).model_copy(update={"nats": 0.01})
    trained = done.model_copy(update={"recovery": reports.recovery(3.0, 2.0, enabled=True)})
    texts = []
    for one in (done, trained):
        write_card(tmp_path, tmp_path, one, reports.evaluation())
        texts.append((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert ["is optimistic" in text for text in texts] == [True, False]
    assert ["; measured after training: " in text for text in texts] == [False, True]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"enabled": True}, "all at once, objective kl"),
        ({"method": "svd-llm"}, "LoRA of rank 8 of up, then of down, objective tokens"),
        ({"method": "svd-llm", "order": "one-pass"}, "rank 8 of up and down, objective tokens"),
    ],
)
def test_a_card_says_how_factors_were_trained(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    trained = reports.recovery(3.0, 2.0, **settings)
    done = reports.compression(reports.matrices(1)).model_copy(update={"recovery": trained})
    write_card(tmp_path, tmp_path, done)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{said}, on 9 tokens.\n" in text
    assert "rounds" not in text
    first = RefinementConfig(enabled=True, windows=24, passes=3)
    refined = {"refinement": first, "refined": (0.5, None), "windows": 30}
    again = done.model_copy(update={"recovery": trained.model_copy(update=refined)})
    write_card(tmp_path, tmp_path, again)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    tokens = f"{24 * trained.config.sequence_length:,}"
    assert f": those of each layer alone, 3 times on {tokens} tokens, then " in text
    again = done.model_copy(update={"cut_before": (0.2254, 0.4), "ratio": 0.5352})
    write_card(tmp_path, tmp_path, again)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "in 3 rounds: 22.54 %, then 40.00 %, then 53.52 %\nof the targeted" in text


def test_a_card_names_every_text_of_a_calibration_with_its_share(tmp_path: Path) -> None:
    done = reports.compression(reports.matrices(1))
    several = CalibrationConfig.model_validate({"text": "/data/own.jsonl:3,allenai/c4"})
    done = done.model_copy(update={"calibration": several})
    write_card(tmp_path, tmp_path, done, None)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    named = "own.jsonl (75\N{NO-BREAK SPACE}%), allenai/c4 (25\N{NO-BREAK SPACE}%)"
    assert f" Calibrated on {named},\n" in text
