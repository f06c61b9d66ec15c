"""Places: folders and URLs."""

from pathlib import Path

import pytest

from schemas.config import RunConfig
from schemas.location import Url, locate


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a/b", Path("a/b")),
        (Path("/a"), Path("/a")),
        ("file:///a/b", Path("/a/b")),
        ("s3://bucket", Url("s3://bucket")),
        ("s3://bucket/a/b/", Url("s3://bucket/a/b")),
        (Url("memory://a"), Url("memory://a")),
    ],
)
def test_a_text_is_a_path_or_a_url(text: object, place: Path | Url) -> None:
    found = locate(text)
    assert found == place
    assert isinstance(found, Url) is isinstance(place, Url)


@pytest.mark.parametrize("text", ["s3://", "s3:///", "://bucket"])
def test_a_url_without_a_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no bucket or folder"):
        locate(text)


def test_what_is_below_a_url() -> None:
    url = Url("s3://bucket/a")
    assert url / "b" == "s3://bucket/a/b"
    assert isinstance(url / "b", Url)
    assert (url / "b").name == "b"
    assert (url / "b").is_within(url)
    assert url.is_within(url)
    assert not Url("s3://bucket/ab").is_within(url)
    assert not url.is_within(Path("/a"))


def config(**fields: object) -> RunConfig:
    asked = {"model": "m", "output": "s3://bucket/out", "run_dir": "run", "ratio": 0.2}
    return RunConfig.model_validate(asked | fields)


def test_an_output_may_be_a_url() -> None:
    made = config(ratio=[0.2, 0.4])
    assert made.output_folder(0.4) == Url("s3://bucket/out/ratio-0.40")
    again = RunConfig.model_validate_json(made.model_dump_json())
    assert again == made
    assert isinstance(again.output, Url)


def test_an_output_in_a_store_needs_a_run_directory() -> None:
    with pytest.raises(ValueError, match="--run-dir"):
        config(run_dir=None)


def test_a_run_directory_is_no_url() -> None:
    with pytest.raises(ValueError, match="a run directory is a folder"):
        config(run_dir="s3://bucket/run")
