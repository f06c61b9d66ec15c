"""The names of the stages, shared by plan, progress, status, report and metrics."""

from typing import Literal

StageName = Literal[
    "start",
    "inspect",
    "load",
    "calibrate forward",
    "carry",
    "calibrate backward",
    "commit forward",
    "factorise",
    "allocate",
    "truncate",
    "adopt",
    "teach",
    "recover",
    "write",
    "assemble",
    "verify",
    "evaluate",
    "upload",
]
"""In the order of a run; `carry` brings hidden states to a later wave, without moments, `teach` the
base's last ones to a recovery. `adopt` takes the factors of a finished checkpoint instead of all
from `load` to `truncate`.
"""
