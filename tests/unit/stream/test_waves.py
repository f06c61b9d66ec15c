"""Which waves run for what is not there yet, and from which boundary a stopped run goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.stream.schedule import micro_batches
from pipeline.stream.waves import Waves
from schemas.run.identity import Identities
from schemas.run.moments import Pass, Tap
from schemas.run.plan import LayerRange
from tests.items import file_of
from workers.storage.keys import Carried
from workers.storage.store import Store
from workers.storage.tensorfile import entries

LAYERS = 8
IDS = Identities(forward="f", backward="b", bases="c", factors="d")
WINDOWS = torch.zeros(3, 4, dtype=torch.int64)
BATCHES = {"forward": micro_batches(WINDOWS, 1, 2), "backward": micro_batches(WINDOWS, 2, 1)}


def tap(layer: int, direction: Pass) -> Tap:
    name = f"layers.{layer}.{direction}"
    return Tap(name=name, layer=layer, module=name, direction=direction, side="output", size=1)


def waves(store: Path, forward: list[int], backward: list[int], size: int = 2) -> Waves:
    """Waves of `size` layers where the given layers are not observed yet."""
    starts = range(0, LAYERS, size)
    plan = SimpleNamespace(waves=[(LayerRange(start=s, stop=s + size),) for s in starts])
    run = cast(Any, SimpleNamespace(plan=plan, ids=IDS, store=Store(store)))
    pending = [tap(layer, "forward") for layer in forward]
    pending += [tap(layer, "backward") for layer in backward]
    return Waves(run, pending, cast(Any, BATCHES))


def leave(found: Waves, wave: int, direction: Pass, carried: Carried = "hidden") -> None:
    """Write the boundary before a wave."""
    boundary = found.below(wave, direction, carried)
    for batch in BATCHES[direction]:
        boundary.store.commit(boundary.key(batch), entries({"rows": torch.zeros(1)}))


EVERY = list(range(LAYERS))


def test_a_new_run_goes_up_and_down_through_all(tmp_path: Path) -> None:
    found = waves(tmp_path, EVERY, EVERY)
    assert found.forward() == range(4)
    assert found.carried() == range(3)  # the last wave needs no boundary above it
    assert found.backward() == range(4)


def test_one_wave_has_no_boundaries(tmp_path: Path) -> None:
    found = waves(tmp_path, EVERY, EVERY, size=LAYERS)
    assert (found.forward(), found.carried(), found.backward()) == (range(1), range(0), range(1))


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    found = waves(tmp_path, [], [])
    assert (found.forward(), found.carried(), found.backward()) == (range(0),) * 3


def test_forward_goes_on_from_the_boundary_before_what_is_pending(tmp_path: Path) -> None:
    found = waves(tmp_path, [4, 5, 6, 7], [])
    leave(found, 2, "forward")
    assert found.forward() == range(2, 4)


def test_without_a_whole_boundary_it_starts_further_below(tmp_path: Path) -> None:
    found = waves(tmp_path, [6, 7], [])
    leave(found, 1, "forward")
    leave(found, 3, "forward")
    file_of(found.run.store, found.below(3, "forward").key(BATCHES["forward"][-1])).unlink()
    assert found.forward() == range(1, 4)


def test_other_waves_than_before_start_where_theirs_begin(tmp_path: Path) -> None:
    """A boundary before layer 2 is of no use to waves of four layers."""
    leave(waves(tmp_path, [], []), 1, "forward")
    assert waves(tmp_path, [4, 5], [], size=4).forward() == range(2)


def test_gradients_go_on_from_the_highest_that_came_back(tmp_path: Path) -> None:
    found = waves(tmp_path, [], [0, 1, 2, 3])
    leave(found, 2, "backward", "gradient")
    leave(found, 1, "backward")
    assert found.backward() == range(2)
    assert not found.carried()


def test_gradients_that_did_not_come_back_start_at_the_loss(tmp_path: Path) -> None:
    found = waves(tmp_path, [], [0, 1])
    assert found.backward() == range(4)
    assert found.carried() == range(3)


@pytest.mark.parametrize("there", [1, 2])
def test_text_is_carried_from_the_last_boundary(there: int, tmp_path: Path) -> None:
    found = waves(tmp_path, [], [6, 7])
    leave(found, there, "backward")
    assert found.backward() == range(3, 4)
    assert found.carried() == range(there, 3)
