"""`python -m tests.integration.halted ARGUMENTS`: the command, but its training comes to a halt.

Once a step was reported, nothing more is read of what training reports, and one report fits in
between: the workers save the states of two looks more at most, and wait.
"""

import functools
import threading

from ray.util.queue import Queue

from pipeline.cli.app import main
from pipeline.cluster import training
from schemas.result.recovery import Look

_ordinary = training._said


def _halt(look: Look) -> str:
    if look.step:
        threading.Event().wait()
    return _ordinary(look)


if __name__ == "__main__":
    training.__dict__["Queue"] = functools.partial(Queue, maxsize=1)
    training._said = _halt
    main()
