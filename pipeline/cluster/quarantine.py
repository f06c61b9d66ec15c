"""Items that failed again and again: set apart, so that all others go on to their end."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.errors import QuarantineError, StorageError
from schemas.request.compression import OnFailure
from workers.process.logs import about_matrices


class Failed(NamedTuple):
    """An item that was given up: its description, its matrices and its last error."""

    what: str
    matrices: tuple[str, ...]
    attempts: int
    error: str
    of_storage: bool = False  # which did not answer, and so says nothing of the item

    def __str__(self) -> str:
        times = "" if self.attempts == 1 else f"{self.attempts} times, the last: "
        return f"{self.what}: {times}{self.error}"


class Quarantine:
    """The items that one run gave up, by their descriptions."""

    def __init__(self, warn: Callable[[str], None], on_failure: OnFailure = "fail") -> None:
        self._warn = warn
        self._keep_dense = on_failure == "keep_dense"
        self.items: dict[str, Failed] = {}

    def add(self, failed: Failed) -> None:
        self.items[failed.what] = failed
        with about_matrices(failed.matrices):
            self._warn(f"given up: {failed}")

    @property
    def matrices(self) -> dict[str, str]:
        """The matrices that were given up, each with its error."""
        return {name: item.error for item in self.items.values() for name in item.matrices}

    def require(self) -> None:
        """Raises QuarantineError if the run cannot go on without the items that were given up, or
        StorageError if storage did not answer for one of them, or had lost what it needs.

        It can go on without matrices if they may stay dense, for a fault of their own.
        """
        dense = {what for what, item in self.items.items() if item.matrices and not item.of_storage}
        missed = [i for what, i in self.items.items() if not (self._keep_dense and what in dense)]
        if not missed:
            return
        listed = "; ".join(map(str, missed))
        other = ""
        if any(item.what in dense for item in missed):
            other = ", or --on-failure keep_dense to leave those matrices as they are"
        count = f"{len(missed)} item{'s' * (len(missed) > 1)}"
        kind = StorageError if any(item.of_storage for item in missed) else QuarantineError
        raise kind(
            f"{count} failed, all others of this step are finished: {listed}. Start the same "
            f"command again to try them again{other}"
        )
