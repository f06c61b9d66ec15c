"""The exit code of a command that fails or is interrupted, and the line that says why."""

import contextlib
import select
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from pipeline.cli import interrupts
from pipeline.request.flags import explain
from schemas.errors import CompressorError, RunError
from workers.process.logs import log

_FAILED = "the run failed; the same command goes on from its run directory, if it has one"
_SMALLER = (
    "evaluate with --streamed or --dtype auto, quantize with fewer --calibration-samples, or take "
    "a machine with more"
)


class Commands(TyperGroup):
    """Commands, each of which ends with an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the command line names."""
        with exit_codes():
            return super().invoke(ctx)


def _reader_left() -> bool:
    """Whether nobody reads standard output any more, as if `head` has seen enough."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Exit with 0 done, 2 bad input, 3 failed run, 130 or 143 interrupted; one line says why."""
    try:
        with interrupts.noticed():
            yield
    except ValidationError as error:
        for line in explain(error):
            log.error("error: %s", line)
        raise typer.Exit(2) from None
    except CompressorError as error:
        log.error("error: %s", error)
        if isinstance(error, RunError):
            log.error(_FAILED)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            raise  # and typer exits without a word
        where = f"{error.filename}: " if error.filename else ""
        log.error("error: %s%s", where, error.strerror or error)
        log.error(_FAILED)
        raise typer.Exit(RunError.exit_code) from None
    except (typer.Exit, typer.Abort):  # they are RuntimeErrors, too
        raise
    except (RuntimeError, MemoryError) as error:
        from workers.process.failures import first_line, short_of_memory  # loads torch

        if not short_of_memory(error):
            raise
        log.error("error: out of memory (%s); %s", first_line(error), _SMALLER)
        raise typer.Exit(RunError.exit_code) from None
    except KeyboardInterrupt:
        line, code = interrupts.outcome()
        log.error(line)
        raise typer.Exit(code) from None
