"""Places: folders and URLs."""

from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.request.places import require_beside
from schemas.errors import ConfigError
from schemas.location import Location, Url, is_within, locate
from schemas.request.config import RunConfig
from schemas.request.export import ExportConfig


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
def test_a_text_is_a_path_or_a_url(text: object, place: Location) -> None:
    found = locate(text)
    assert found == place
    assert isinstance(found, Url) is isinstance(place, Url)


@pytest.mark.parametrize("text", ["s3://", "s3:///", "://bucket"])
def test_a_url_without_a_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no bucket or folder"):
        locate(text)


def test_what_goes_to_a_file_system_names_no_url() -> None:
    asked = partial(ExportConfig, checkpoint="out", dense=True)
    assert asked(output="file:///a/b").output == Path("/a/b")
    with pytest.raises(ValidationError, match="s3://bucket/a is a URL; name a path"):
        asked(output="s3://bucket/a")


def test_what_is_below_a_url() -> None:
    url = Url("s3://bucket/a")
    assert url / "b" == "s3://bucket/a/b"
    assert isinstance(url / "b", Url)
    assert (url / "b").name == "b"
    assert (url / "b").parent == url


def test_what_is_within_what() -> None:
    url, folder = Url("s3://bucket/a"), Path("/a")
    assert is_within(url / "b", url)
    assert is_within(url, url)
    assert not is_within(Url("s3://bucket/ab"), url)
    assert is_within(folder / "b" / "c", folder)
    assert is_within(folder, folder)
    assert not is_within(Path("/ab"), folder)
    assert not is_within(url, folder)
    assert not is_within(folder, url)


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


def test_a_run_directory_may_be_a_url() -> None:
    made = config(run_dir="s3://bucket/run")
    assert made.run_folder == Url("s3://bucket/run")
    assert isinstance(RunConfig.model_validate_json(made.model_dump_json()).run_folder, Url)


def test_what_is_fetched_goes_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder for everybody could hold a stranger's files of that name already."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config().fetched == Path("run/base")
    assert config(run_dir="s3://bucket/run").fetched == tmp_path / ".cache" / "svdllm"


@pytest.mark.parametrize("run_dir", ["s3://bucket/out", "s3://bucket/out/run", "s3://bucket"])
def test_output_and_run_directory_are_apart_in_a_store(run_dir: str) -> None:
    with pytest.raises(ConfigError, match="neither may be inside the other"):
        require_beside(Url("s3://bucket/out"), Url(run_dir))
    require_beside(Url("s3://bucket/out"), Url("s3://bucket/out.run"))
