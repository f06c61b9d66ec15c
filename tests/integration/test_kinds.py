"""Every check of tests/contract.py, on a tiny model of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import CHECKS, REMOVED, Subject
from tests.kinds import KINDS
from tests.loads import load_here
from workers.checkpoint import verify

ROUTED = {"gpt_oss", "granitemoe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen3_moe"}


@pytest.fixture(autouse=True)
def _loads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In clean processes, test_any_decoder loads a dozen kinds."""
    load_here(monkeypatch)


@pytest.fixture(scope="module", params=[*KINDS, "phi, lm_head"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A kind, cut with what is named after it; phi's head has a bias."""
    kind, _, more = str(request.param).partition(", ")
    return Subject(kind, tmp_path_factory.mktemp(kind), f"*, {more}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_kind(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_few_kinds_have_no_neurons(subject: Subject) -> None:
    """All that they have is routed experts."""
    assert bool(subject.inspected.neurons) is (subject.kind not in ROUTED)


def test_layers_are_cut_side_by_side(tmp_path: Path) -> None:
    """What is only true together: a matrix of every kind of a hybrid layer is cut."""
    spec = Subject("qwen3_5", tmp_path).spec
    assert {matrix.path.partition(".")[0] for matrix in spec.matrices} == {
        "linear_attn",
        "self_attn",
        "mlp",
    }


@pytest.mark.parametrize(
    ("kind", "judged"),
    [
        ("granitemoehybrid", True),  # its first and last layers have no attention
        ("lfm2", True),
        ("jamba", None),  # its second layer would be unlike the last one
    ],
)
def test_two_layers_of_a_hybrid_are_loaded(kind: str, judged: bool | None, tmp_path: Path) -> None:
    """Or not judged, if two layers are no part of such a model; they never fail."""
    folder, _ = Subject(kind, tmp_path).compressed("plain", REMOVED)
    rows = verify._clean_process([str(folder), "part", str(10**9)], 300.0)
    [part] = [row for row in rows if "first and last layer" in row.name]
    assert part.passed is judged
    assert [row for row in rows if row.passed is False] == []
    assert ("finite loss" in [row.name for row in rows]) is bool(judged)
