"""What was given up: said at once, and raised at the end unless the run can do without."""

import pytest

from pipeline.cluster.quarantine import Failed, Quarantine
from schemas.errors import QuarantineError, StorageError

CUT = Failed("cut a", ("a",), 3, "a worker died")
GROUP = Failed("factorise b, c", ("b", "c"), 1, "c holds NaN")
FILE = Failed("write model.safetensors", (), 3, "a worker died")
UNREAD = Failed("cut d", ("d",), 3, "the storage does not answer", of_storage=True)


def ignore(message: str) -> None:
    """For tests that do not look at what is said."""


def test_it_is_said_at_once() -> None:
    said: list[str] = []
    quarantine = Quarantine(said.append)
    quarantine.require()
    quarantine.add(CUT)
    quarantine.add(GROUP)
    assert said == [
        "given up: cut a: 3 times, the last: a worker died",
        "given up: factorise b, c: c holds NaN",
    ]
    assert quarantine.matrices == {
        "a": "a worker died",
        "b": "c holds NaN",
        "c": "c holds NaN",
    }


def test_the_run_fails_with_every_item_by_name() -> None:
    quarantine = Quarantine(ignore)
    for failed in (CUT, FILE):
        quarantine.add(failed)
    with pytest.raises(QuarantineError) as caught:
        quarantine.require()
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "2 items failed, all others of this step are finished: "
        "cut a: 3 times, the last: a worker died; "
        "write model.safetensors: 3 times, the last: a worker died. Start the same "
        "command again to try them again, or --on-failure keep_dense to leave those matrices as "
        "they are"
    )


def test_matrices_may_stay_dense_but_nothing_else_may_be_left_out() -> None:
    quarantine = Quarantine(ignore, "keep_dense")
    quarantine.add(CUT)
    quarantine.require()
    quarantine.add(FILE)
    with pytest.raises(QuarantineError, match=r"^1 item failed.*: write model.*try them") as e:
        quarantine.require()
    assert "keep_dense" not in str(e.value)


def test_no_matrix_stays_dense_because_storage_was_away() -> None:
    quarantine = Quarantine(ignore, "keep_dense")
    quarantine.add(CUT)
    quarantine.add(UNREAD)
    with pytest.raises(StorageError, match=r"^1 item failed.*: cut d: 3 times.*try them again$"):
        quarantine.require()
