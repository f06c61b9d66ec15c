"""Settings as the command line, the reference and YAML name them."""

from collections.abc import Callable
from typing import Any

import pytest

from schemas.request.adoption import AdoptionConfig
from schemas.request.bench import BenchConfig
from schemas.request.compression import CompressionConfig
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.nightly import NightlyConfig
from schemas.request.settings import settings
from schemas.request.sizes import format_size, parse_count, parse_size

COMMANDS: tuple[Any, ...] = (
    RunConfig,
    AdoptionConfig,
    NightlyConfig,
    EvaluationConfig,
    BenchConfig,
)


@pytest.mark.parametrize("schema", COMMANDS)
def test_every_setting_has_one_path_one_flag_and_a_description(schema: Any) -> None:
    found = list(settings(schema))
    flags = [setting.flag for setting in found if setting.flag]
    assert len({setting.path for setting in found}) == len(found)
    assert len(set(flags)) == len(flags)
    assert all(setting.field.description for setting in found)


def test_a_field_of_a_group_has_a_flag_only_if_it_names_one() -> None:
    flags = {setting.path: setting.flag for setting in settings(RunConfig)}
    assert flags["ratio"] == "--ratio"
    assert flags["calibration.samples"] == "--calibration-samples"
    assert flags["calibration.segments"] == ""


def test_own_settings_come_before_inherited_ones() -> None:
    paths = [setting.path for setting in settings(NightlyConfig)]
    common = [setting.path for setting in settings(CompressionConfig)]
    assert paths[0] == "watch"
    assert paths[-len(common) :] == common


@pytest.mark.parametrize(
    ("size", "text"), [(6 * 10**9, "6GB"), (2**30, "1GiB"), (1500, "1500B"), (3 * 10**12, "3TB")]
)
def test_a_size_is_shown_as_people_write_it(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("2.01GB", 2_010_000_000), ("80GiB", 80 * 2**30), ("1.5TB", 15 * 10**11), ("1000", 1000)],
)
def test_a_size_is_read_to_a_byte(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("parse", [parse_size, parse_count])
def test_a_number_beyond_all_sizes_is_refused_as_no_size(parse: Callable[[object], int]) -> None:
    assert parse("9" * 18) > 10**17
    with pytest.raises(ValueError, match="is not a"):
        parse("9" * 400)
