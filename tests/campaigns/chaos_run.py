"""One run under kills: the same command, started again until it ends well."""

import random
import re
import signal
import time
from typing import NamedTuple

from schemas.request.config import RunConfig
from schemas.run.record import RunRecord
from tests.campaigns.nodes import Nodes
from tests.documents import ROOT
from tests.integration.processes import Command
from tests.integration.support import KINDS, flags, item_attempts, weight_sums
from tests.items import local
from workers.storage.keys import RUN_RECORD

STAGES = (
    "start",
    "load",
    "calibrate forward",
    "commit forward",
    "calibrate backward",
    "factorise",
    "allocate",
    "truncate",
    "write",
    "assemble",
    "verify",
    "publish",
)
PUBLISHED = "end"  # the checkpoint is there, the command is not over
DISTURBANCES = ("worker", "node, replaced", "node, lost", "driver", "head")
_LAST_LINE = "written and verified"
_ENDED = re.compile(r" INFO ([a-z ]+): \d+ [a-z ]+ in [\d.]+ s")
_LONGEST_S = 1800.0
_ABSENT_S = 30.0  # after which a lost node comes back, where the run waits for it
_POLL_S = 0.005
_LOOK_S = 0.5  # between looks at the processes of the nodes


class Kill(NamedTuple):
    """What is killed, in which stage, and after which part of its usual duration."""

    what: str
    stage: str
    moment: float


class Outcome(NamedTuple):
    """What happened to one run: kills as (what, stage under way), starts of the command."""

    kills: list[tuple[str, str]]
    starts: int
    items: dict[str, str]
    repeated: set[str]
    sums: dict[str, str]
    seconds: dict[str, float]


class FailedRunError(Exception):
    """A run ended in a way that the same command does not continue."""


def drawn(seed: int) -> list[Kill]:
    """One kill of each kind of thing; twelve seeds in a row cover every stage with each."""
    round_, turn = divmod(seed, len(STAGES))
    draw, kills = random.Random(seed), []
    for what in ("worker", "node", "driver"):
        deck = random.Random(f"{what} {round_}").sample(STAGES, len(STAGES))
        if what == "node":
            what = draw.choice(("node, replaced", "node, lost"))
        kills.append(Kill(what, deck[turn], draw.random()))
    return sorted(kills, key=_order)


def _order(kill: Kill) -> tuple[int, float]:
    return STAGES.index(kill.stage), kill.moment


class ChaosRun:
    """A command on a cluster, disturbed by `kills` in their order."""

    def __init__(
        self, nodes: Nodes, config: RunConfig, kills: list[Kill], usual: dict[str, float], seed: int
    ) -> None:
        self._nodes, self._config, self._usual = nodes, config, usual
        self._left = sorted(kills, key=_order)
        self._draw = random.Random(seed)
        self._done: list[tuple[str, str]] = []
        self._items: dict[str, str] = {}
        self._repeated: set[str] = set()
        self._skipped: set[str] = set()
        self._begun = 0
        self._due: float | None = None
        self.ends: list[str] = []  # of drivers whose head was lost: exit code and last line
        self._lost = self._looked = 0.0

    def run(self) -> Outcome:
        """Start the command until it ends with 0. Raises FailedRunError if it cannot."""
        starts, code = 0, None
        seconds: dict[str, float] = {}
        while code != 0:
            starts += 1
            command = Command(flags(self._config), ROOT, {"RAY_ADDRESS": self._nodes.address})
            try:
                seconds = self._watch(command)
                code = command.wait()
            finally:
                command.close()
            self._sample()
            if code not in (0, 3, -9) and not self._nodes.headless:
                raise FailedRunError(f"exit code {code}:\n{command.log}")
            if self._nodes.headless:
                self.ends.append(f"{code}: {command.log.strip().splitlines()[-1]}")
                self._nodes.renew()
        self._nodes.fill()
        sums = weight_sums(local(self._config.output))
        return Outcome(self._done, starts, self._items, self._repeated, sums, seconds)

    def _watch(self, command: Command) -> dict[str, float]:
        """Until the command ends; the seconds that it spent in each stage."""
        start = time.monotonic()
        stage, since, seconds = STAGES[0], start, dict.fromkeys((*STAGES, PUBLISHED), 0.0)
        while command.code is None:
            now = time.monotonic()
            if now - start > _LONGEST_S:
                raise FailedRunError(f"not finished in {_LONGEST_S:g} s:\n{command.log}")
            if (current := self._under_way(command.log)) != stage:
                seconds[stage] += now - since
                stage, since = current, now
            self._disturb(command, stage, now)
            if self._nodes.lacking and not self._nodes.headless and now - self._lost > _ABSENT_S:
                self._nodes.fill()
            time.sleep(_POLL_S)
        seconds[stage] += time.monotonic() - since
        return seconds

    def _disturb(self, command: Command, stage: str, now: float) -> None:
        """The next kill, if its moment has come."""
        if not self._left:
            return
        kill = self._left[0]
        if now - self._looked > _LOOK_S and kill.what not in ("driver", "head"):
            self._nodes.look()
            self._looked = now
        if stage in STAGES[: STAGES.index(kill.stage)]:
            return
        if self._due is None:
            self._due = now + kill.moment * self._usual.get(kill.stage, 0.0)
        if now < self._due:
            return
        if self._kill(kill.what, command):
            self._sample()
            self._done.append((kill.what, stage))
            self._left.pop(0)
            self._due = None

    def _kill(self, what: str, command: Command) -> bool:
        """Whether there was something to kill."""
        if what == "driver":
            command.send(signal.SIGKILL)
            return True
        if what == "head":
            self._nodes.kill_head()
            return True
        if what == "worker":
            return self._nodes.kill_worker(self._draw)
        self._nodes.fill()  # those that an earlier kill took
        self._nodes.kill_node(self._draw)
        if what == "node, replaced":
            self._nodes.fill()
        self._lost = time.monotonic()
        return True

    def _under_way(self, log: str) -> str:
        """The stage that follows the last one that ended, and has something to do."""
        if _LAST_LINE in log:
            return PUBLISHED
        ended = [STAGES.index(name) for name in _ENDED.findall(log) if name in STAGES]
        if (begun := ended.count(0)) != self._begun:  # the workers have started, or started again
            self._begun = begun
            self._sample()
            self._skipped = self._finished_stages()
        after = ended[-1] + 1 if ended else 0
        left = [stage for stage in STAGES[after:] if stage not in self._skipped]
        return left[0] if left else STAGES[-1]

    def _finished_stages(self) -> set[str]:
        """Those that are passed over after a start, because their items are there."""
        path = local(self._config.run_folder) / RUN_RECORD
        if not path.exists():
            return set()
        record = RunRecord.model_validate_json(path.read_bytes())
        found: set[str] = set()
        if self._count(f"moments/{record.ids.forward}/") == record.taps["forward"]:
            found |= {"calibrate forward", "commit forward"}
            if self._count(f"moments/{record.ids.backward}/") == record.taps["backward"]:
                found |= {"load", "calibrate backward"}
        if self._count("bases/") == self._count("spectra/") == record.matrices:
            found |= {"factorise"}
        return found

    def _count(self, prefix: str) -> int:
        return sum(key.startswith(prefix) for key in self._items)

    def _sample(self) -> None:
        """Note who made every item; one that was there must be the same still."""
        now = item_attempts(self._config.run_folder, *KINDS)
        self._repeated |= {key for key, made in self._items.items() if now.get(key) != made}
        self._items |= now
