"""Every check of tests/contract.py, on a tiny model of every kind."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.contract import CHECKS, Subject
from tests.integration import warm as warm_processes
from tests.kinds import KINDS
from workers.checkpoint import verify

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_warm_checks() -> Iterator[None]:
    threads, interpreter = torch.get_num_threads(), verify.INTERPRETER
    torch.set_num_threads(1)
    verify.INTERPRETER = (sys.executable, warm_processes.__file__)
    yield
    torch.set_num_threads(threads)
    verify.INTERPRETER = interpreter


@pytest.fixture(scope="module", params=[*KINDS, "phi, lm_head"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A kind, cut with what is named after it; phi's head has a bias."""
    kind, _, more = str(request.param).partition(", ")
    return Subject(kind, tmp_path_factory.mktemp(kind), f"*, {more}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_kind(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_layers_are_cut_side_by_side(tmp_path: Path) -> None:
    """What is only true together: a matrix of every kind of a hybrid layer is cut."""
    spec = Subject("qwen3_5", tmp_path).spec
    assert {matrix.path.partition(".")[0] for matrix in spec.matrices} == {
        "linear_attn",
        "self_attn",
        "mlp",
    }
