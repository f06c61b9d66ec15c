"""A run that is stopped in every way, again and again, writes what an undisturbed one writes."""

import signal
from collections.abc import Callable

from schemas.request.config import RunConfig
from schemas.run.record import RunRecord
from tests.integration.conftest import Reference
from tests.integration.processes import AGENTS, Command, Process, Start
from tests.integration.support import KINDS, flags, item_attempts, until, weight_sums
from tests.items import local


def test_a_run_stopped_in_every_stage_ends_with_the_same_bytes(
    config: RunConfig, reference: Reference, start: Start
) -> None:
    run_dir = local(config.run_folder)
    seen: dict[str, str] = {}

    def stop(
        what: str,
        under_way: Callable[[Command], bool],
        how: Callable[[Command], int],
        lingering: tuple[str, ...] = (),
    ) -> int:
        command = start(flags(config))
        until(lambda: under_way(command), what)
        code = how(command)
        until(lambda: command.alone(lingering), f"{what}: every process of the run has ended")
        now = item_attempts(run_dir, *KINDS)
        assert {key: now[key] for key in seen} == seen, f"{what}: a finished item was made again"
        seen.update(now)
        return code

    def items(kind: str) -> Callable[[Command], bool]:
        return lambda c: c.going and not item_attempts(run_dir, kind).keys() <= seen.keys()

    assert stop("start", starts_ray, lambda c: interrupt(c, signal.SIGTERM), AGENTS) == 143
    assert not (run_dir / "run.json").exists()
    assert stop("calibrate", lambda c: c.said("load: "), lose_host) == -signal.SIGKILL
    code = stop("backward", lambda c: c.said("commit forward: "), lose_driver, AGENTS)
    assert code == -signal.SIGKILL
    record = RunRecord.model_validate_json((run_dir / "run.json").read_bytes())
    assert len(seen) >= record.taps["forward"]  # more if the signal came late
    assert stop("backward again", lambda c: c.said("load: "), lose_worker) == 143
    assert stop("commit", items("moments"), lambda c: interrupt(c, signal.SIGTERM)) == 143
    assert stop("factorise", items("bases"), do_without_worker) == 130
    assert stop("verify", lambda c: c.said("assemble: "), lose_host) == -signal.SIGKILL
    assert not local(config.output).exists()
    last = start(flags(config), cold=True)
    assert last.wait() == 0, last.log
    assert weight_sums(local(config.output)) == weight_sums(local(reference.output.path))
    now = item_attempts(run_dir, *KINDS)
    assert {key: now[key] for key in seen} == seen


def starts_ray(command: Command) -> bool:
    """Whether ray.init is under way: its first process is there."""
    return command.going and command.runs("gcs_server")


def interrupt(command: Command, number: signal.Signals) -> int:
    """The exit code after a signal to the driver, which ends its Ray by itself."""
    command.send(number)
    return command.wait()


def lose_host(command: Command) -> int:
    """The exit code after SIGKILL to everything."""
    command.lose_host()
    return command.wait()


def lose_driver(command: Command) -> int:
    """The exit code after SIGKILL to the driver alone, whose Ray has to end by itself."""
    command.send(signal.SIGKILL)
    return command.wait()


def lose_worker(command: Command) -> int:
    """The exit code after one layer shard was lost, the run went on by itself, and then SIGTERM."""
    kill_shard(command)
    until(lambda: command.said("going on from "), "the driver goes on")
    assert "a worker died" in command.log
    assert "(1 of 3 losses without progress)" in command.log
    return interrupt(command, signal.SIGTERM)


def do_without_worker(command: Command) -> int:
    """The exit code after one layer shard was lost, others took its items, and then SIGINT."""
    kill_shard(command)
    until(lambda: command.said("truncate: "), "matrices are cut by other workers")
    assert "a worker died" in command.log
    assert "; going on with 1" in command.log
    return interrupt(command, signal.SIGINT)


def kill_shard(command: Command) -> None:
    """SIGKILL to one layer shard."""
    command.send(signal.SIGCONT)  # a signal without effect: it only notes who is there
    shards = [process for process in command.family if "ray::LayerShard" in process.name]
    victim: Process = min(shards)
    victim.kill()
