#!/usr/bin/env python3
"""Ask the autoscaler of a Ray cluster for GPUs, wait for them, run a command, let them go.

A run takes the GPUs that are there when it starts, and asks for none. While the command runs the
request stands, so that the autoscaler replaces what is lost. It is repeated, because a cluster has
one request: another job that asks, or ends, replaces it.
"""

import argparse
import signal
import subprocess
import sys
from time import monotonic, sleep

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

_LOOK_EVERY_S = 5.0
_ASK_EVERY_S = 30.0
_NOTHING_WAITS = 4  # exit code of `svdllm nightly --look`


def wait_for_gpus(wanted: int, within_s: float) -> int:
    """GPUs of the cluster, as soon as there are as many as wanted, or when the time is over."""
    end, before = monotonic() + within_s, -1
    while True:
        _ask([{"GPU": 1}] * wanted)
        there = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if there != before:
            print(f"{there} of {wanted} GPUs are there", flush=True)
        if there >= wanted or monotonic() > end:
            return there
        before = there
        sleep(_LOOK_EVERY_S)


def with_gpus(wanted: int, within_s: float, command: list[str]) -> int:
    """Exit code of the command; 3 without running it if no GPU has come."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if not wait_for_gpus(wanted, within_s):
            print(f"error: no GPU came within {within_s:g} s; `ray status` says why", flush=True)
            return 3
        return _run(command, [{"GPU": 1}] * wanted)
    finally:
        _ask([])


def _run(command: list[str], bundles: list[dict[str, float]]) -> int:
    """Exit code of the command, during which the GPUs are asked for again and again."""

    def let_go(*_: object) -> None:
        bundles.clear()
        _ask(bundles)

    # `ray job stop` signals the command too, and soon kills what has not ended: let go at once.
    signal.signal(signal.SIGTERM, let_go)
    with subprocess.Popen(command) as running:
        while True:
            try:
                return running.wait(_ASK_EVERY_S)
            except subprocess.TimeoutExpired:
                _ask(bundles)


def _ask(bundles: list[dict[str, float]]) -> None:
    """Ask, if the cluster hears it: the command is worth more than the request."""
    try:
        request_resources(bundles=bundles)
    except (RayError, OSError) as error:
        print(f"warning: the autoscaler did not answer: {error}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gpus", type=int, help="GPUs to ask for; the command may start with fewer")
    parser.add_argument(
        "--within", type=float, default=1800, help="seconds to wait for all of them"
    )
    parser.add_argument(
        "--look", action="store_true", help="run the command with --look first: is there work?"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if not asked.command:
        parser.error("no command to run; name one after the number of GPUs")
    if asked.look and (code := subprocess.call([*asked.command, "--look"])):
        return 0 if code == _NOTHING_WAITS else code
    ray.init(log_to_driver=False)
    return with_gpus(asked.gpus, asked.within, asked.command)


if __name__ == "__main__":
    sys.exit(main())
