"""What a command returns when it fails or is interrupted, and the line that says why."""

import contextlib
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import typer
from pydantic import ValidationError

from pipeline.configuration import explain
from schemas.errors import CompressorError, RunError
from workers.logs import log


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


def terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _TerminatedError


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """0 done, 2 bad input, 3 failed run, 130 and 143 interrupted; one line says why."""
    again = "start the same command again to continue"
    try:
        yield
    except ValidationError as error:
        for line in explain(error):
            log.error("error: %s", line)
        raise typer.Exit(2) from None
    except CompressorError as error:
        log.error("error: %s", error)
        if isinstance(error, RunError):
            log.error("the run failed; what it finished is kept, and the same command continues it")
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        log.error("error: %s%s", where, error.strerror or error)
        log.error("the run failed; what it finished is kept: %s", again)
        raise typer.Exit(RunError.exit_code) from None
    except KeyboardInterrupt:
        log.error("interrupted; %s", again)
        raise typer.Exit(130) from None
    except _TerminatedError:
        log.error("terminated; %s", again)
        raise typer.Exit(143) from None
