"""SIGINT and SIGTERM end a command with 130 and 143 and one line, whenever they arrive."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_AGAIN = "the same command goes on from its run directory, or begins again if it has none"
_received: list[signal.Signals] = []


class Interrupted(KeyboardInterrupt):
    """One of the signals has arrived."""


def install() -> None:
    """Raise Interrupted when a signal arrives; an ignored signal (nohup) stays ignored."""
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, receive)
    sys.unraisablehook = _send_again


def ignore() -> None:
    """Ignore both signals during what is left to do after the exit code is known."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def receive(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal: record it and raise Interrupted."""
    _received.append(signal.Signals(number))
    raise Interrupted


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send the signal again a moment later if Interrupted was raised where nothing can catch it
    (in a destructor, for example): Python prints such an exception and forgets it.
    """
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.1, os.kill, (os.getpid(), _received[0]))
    again.daemon = True
    again.start()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Make an interrupt end the body as Interrupted: native code turns it into other errors."""
    try:
        yield
    except BaseException as error:
        if _received:
            raise Interrupted from error
        raise


def outcome() -> tuple[str, int]:
    """Return the line that says which signal came first, and the exit code."""
    number = _received[0] if _received else signal.SIGINT
    return f"{_WORDS[number]}; {_AGAIN}", 128 + number


def leave() -> NoReturn:
    """End a command that has no log yet."""
    line, code = outcome()
    print(line, file=sys.stderr)
    sys.exit(code)
