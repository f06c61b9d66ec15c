"""By which name every node finds a model."""

from pathlib import Path

import pytest

from workers.checkpoint.source import on_every_node


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_named_by_its_path(tmp_path: Path, form: str) -> None:
    assert on_every_node(form.format(tmp_path), tmp_path) == (str(tmp_path), None)


def test_a_copy_of_a_store_is_named_by_its_folder(tmp_path: Path) -> None:
    assert on_every_node("s3://bucket/model", tmp_path) == (str(tmp_path), None)


def test_a_hub_id_is_named_with_the_commit_that_it_stands_for() -> None:
    snapshot = Path("/cache/models--owner--name/snapshots/0123abcd")
    assert on_every_node("owner/name", snapshot) == ("owner/name", "0123abcd")
