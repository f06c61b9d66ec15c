"""A command in a process of its own, and everything that it started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.documents import ROOT
from tests.integration.asker import SOCKET
from tests.integration.warm import Forked, asked

# Agents of Ray, with and without the name they give themselves: they outlive a driver that is
# killed, or that ends while Ray starts, by about a minute.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")


class Process(NamedTuple):
    """A process; its start time tells it from a later one of the same number."""

    pid: int
    started: int
    name: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that only waits to be reaped does not."""
        stat = _stat(self.pid)
        return stat is not None and stat[2] == self.started and stat[0] != "Z"

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)


def descendants(pid: int) -> list[Process]:
    """Children of a process, their children, and so on; a forked one is of the one that asked."""
    forked = asked()
    found: dict[int, tuple[int, Process]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        number = int(path.name)
        if stat := _stat(number):
            name = stat[3]
            found[number] = (forked.get(number, stat[1]), Process(number, stat[2], name))
    family = {pid}
    while more := {n for n, (parent, _) in found.items() if parent in family} - family:
        family |= more
    return [found[number][1] for number in sorted(family - {pid})]


def kill_training_workers() -> list[Process]:
    """Kill those of this process's Ray, and no other program's on this machine."""
    mine = descendants(os.getpid())
    workers = [process for process in mine if "ray::RayTrainWorker" in process.name]
    for process in workers:
        process.kill()
    return workers


def _stat(pid: int) -> tuple[str, int, int, str] | None:
    """State, parent, start time and command line of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[19]), command


class Stream:
    """What is written to a pipe, as it comes."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        end, self.pipe = os.pipe()
        self._reader = threading.Thread(target=self._read, args=(end,))
        self._reader.start()

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._lines)

    def join(self) -> None:
        """Wait until nobody can write any more."""
        self._reader.join()

    def _read(self, end: int) -> None:
        with open(end, errors="replace") as stream:
            for line in stream:
                self._lines.append(line)


class Command:
    """`python -m pipeline ARGUMENTS`, its lines as they come.

    `environment` adds to that of this process; `program` may stand in the place of `-m pipeline`.
    It is forked from the server of warm processes, if there is one, unless it is to start
    `cold`, as for a user.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "pipeline"),
        cold: bool = False,
    ) -> None:
        words, whole = [*program, *arguments], {**os.environ, **(environment or {})}
        self._output, self._errors = Stream(), Stream()
        self._process: Forked | subprocess.Popen[bytes]
        output, errors = self._output.pipe, self._errors.pipe
        with (
            Path(os.devnull).open("rb") as nothing,
            os.fdopen(output, "wb"),
            os.fdopen(errors, "wb"),
        ):
            if cold or SOCKET not in whole:
                self._process = subprocess.Popen(
                    [sys.executable, *words],
                    cwd=folder,
                    env=whole,
                    stdin=nothing,
                    stdout=output,
                    stderr=errors,
                )
            else:
                self._process = Forked(words, whole, folder, (nothing.fileno(), output, errors))
        self.family: set[Process] = set()

    @property
    def log(self) -> str:
        """Standard error so far."""
        return self._errors.text

    @property
    def printed(self) -> str:
        """Standard output so far."""
        return self._output.text

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def going(self) -> bool:
        """True while it runs; fails once it has ended."""
        assert self.code is None, f"ended with {self.code}:\n{self.log}"
        return True

    def said(self, text: str) -> bool:
        """Whether a line with `text` came; fails if the process ended without it."""
        ended = self._process.poll() is not None
        found = text in self.log
        assert found or not ended, f"ended without {text!r}:\n{self.log}"
        return found

    def runs(self, program: str) -> bool:
        """Whether a process of its family now has `program` in its command."""
        return any(program in process.name for process in descendants(self._process.pid))

    def send(self, number: signal.Signals) -> None:
        """A signal to this process alone; who its descendants were is kept in `family`."""
        self.family |= set(descendants(self._process.pid))
        self._process.send_signal(number)

    def lose_host(self) -> None:
        """SIGKILL to it and all that it started, as when a machine is lost."""
        self.send(signal.SIGKILL)
        for process in self.family:
            process.kill()

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code; then all lines are read. Raises TimeoutExpired after `seconds`, if any."""
        code = self._process.wait(seconds)
        self._output.join()
        self._errors.join()
        return code

    def close(self) -> None:
        """End what is left of it and of its family."""
        if self._process.poll() is None:
            self.lose_host()
        for process in self.family:
            process.kill()
        self.wait()

    def alone(self, except_for: tuple[str, ...] = ()) -> bool:
        """Whether no descendant lives on, but those whose command contains one of the words."""
        return not any(
            process.alive and not any(word in process.name for word in except_for)
            for process in self.family
        )


Start = Callable[..., Command]  # with arguments, and what else `Command` takes by name


def run(
    arguments: Sequence[str], program: Sequence[str] = ("-m", "pipeline"), folder: Path = ROOT
) -> Command:
    """A command that has ended."""
    command = Command(arguments, folder, program=program)
    try:
        command.wait()
    finally:
        command.close()
    return command
