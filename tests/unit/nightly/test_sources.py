"""Revisions of a hub repository as a source, with a hub that answers from memory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.hf_api import RepoFile

from pipeline.nightly import sources
from pipeline.nightly.sources import Checkpoint, natural, source_of
from schemas.errors import CheckpointError, ConfigError
from schemas.location import Url
from workers.storage.places import write

WHOLE = {"config.json": "c", "tokenizer.json": "t", "model.safetensors": "w"}
SHARDS = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")


class Hub:
    """Files, with the identity of each, by commit; `branches` and `tags` name commits."""

    def __init__(self, commits: dict[str, dict[str, str]], **refs: dict[str, str]) -> None:
        self._commits, self._refs = commits, refs

    def list_repo_commits(self, repo: str, revision: str) -> list[Any]:
        if repo != "org/name" or revision != "main":
            raise OSError(f"404: {repo} at {revision}")
        return [SimpleNamespace(commit_id=commit) for commit in reversed(self._commits)]

    def list_repo_refs(self, repo: str) -> Any:
        def named(kind: str) -> list[Any]:
            found = self._refs.get(kind, {})
            return [SimpleNamespace(name=n, target_commit=c) for n, c in found.items()]

        return SimpleNamespace(branches=named("branches"), tags=named("tags"))

    def list_repo_tree(self, repo: str, revision: str) -> list[RepoFile]:
        return [
            RepoFile(path=path, size=1, oid=identity, lfs=_lfs(path, identity))  # type: ignore[no-untyped-call]
            for path, identity in self._commits[revision].items()
        ]


def _lfs(path: str, identity: str) -> dict[str, object] | None:
    if not path.endswith(".safetensors"):
        return None
    return {"size": 1, "oid": f"sha256 {identity}", "pointerSize": 1}


def hub(
    monkeypatch: pytest.MonkeyPatch, commits: dict[str, dict[str, str]], **refs: dict[str, str]
) -> None:
    monkeypatch.setattr(sources, "HfApi", lambda: Hub(commits, **refs))


def test_commits_of_a_branch_are_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"fff": WHOLE, "aaa": WHOLE, "b10": WHOLE})
    found = source_of("org/name", None).found()
    assert [(one.name, one.revision) for one in found] == [(n, n) for n in ("fff", "aaa", "b10")]
    assert sorted(one.order for one in found) == [one.order for one in found]
    assert {one.model for one in found} == {"org/name"}


def test_branches_and_tags_are_in_the_order_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    refs = {"branches": {"step1000": "c", "step900": "b"}, "tags": {"step90": "a"}}
    hub(monkeypatch, {}, **refs)
    found = source_of("org/name", "*").found()
    assert [(one.name, one.revision) for one in found] == [
        ("step90", "a"),
        ("step900", "b"),
        ("step1000", "c"),
    ]


def test_a_commit_that_changes_no_file_of_the_model_is_the_same_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub(
        monkeypatch,
        {
            "one": WHOLE,
            "two": WHOLE | {"README.md": "new", "eval.csv": "x", "LICENSE": "l", "a.py": "p"},
            "three": WHOLE | {"model.safetensors": "w2"},
        },
    )
    source = source_of("org/name", None)
    one, two, three = map(source.content, source.found())
    assert one == two != three


def test_a_commit_that_lacks_files_is_not_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
    monkeypatch.setattr(sources, "hf_hub_download", lambda *_, **__: str(index))
    mute = {"config.json": "c", "model.safetensors.index.json": "i", SHARDS[0]: "1"}
    half, rest = mute | {"vocab.txt": "t"}, {SHARDS[1]: "2"}
    hub(monkeypatch, {"a": {"README.md": "r"}, "b": half, "c": mute | rest, "d": half | rest})
    source = source_of("org/name", None)
    *lacking, whole = source.found()
    for commit, missing in zip(
        lacking,
        ("tokenizer, config.json, model.safetensors", SHARDS[1], "tokenizer"),
        strict=True,
    ):
        with pytest.raises(CheckpointError, match=rf"at {commit.name}: no {missing} in this"):
            source.content(commit)
    assert source.content(whole)
    assert source.stamp(whole) == "d"


def test_a_hub_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {})
    with pytest.raises(CheckpointError, match="the hub did not give it"):
        source_of("org/other", None).found()


@pytest.mark.parametrize("watch", ["name", "/absent/folder", "./absent", "~/absent"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(watch: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        source_of(watch, None)


def test_a_prefix_with_nothing_below_it_is_refused(url: Url) -> None:
    with pytest.raises(ConfigError, match=f"watch {url}: nothing is there; check the URL"):
        source_of(url, None).found()
    write(url / "notes.txt", b"")
    assert source_of(url, None).found() == []


def test_names_sort_by_their_numbers() -> None:
    names = ["checkpoint-1000", "checkpoint-90", "epoch2-step10", "epoch2-step9", "epoch10-step1"]
    assert sorted(names, key=natural) == [
        *("checkpoint-90", "checkpoint-1000"),
        *("epoch2-step9", "epoch2-step10", "epoch10-step1"),
    ]


def test_a_link_to_another_checkpoint_is_none_of_its_own(tmp_path: Path) -> None:
    """Else than one to a place that is not looked at."""
    source = tmp_path / "source"
    for folder in (source / "step-600", source / "..data", tmp_path / "elsewhere"):
        write(folder / "config.json", b"{}")
    for name, target in {"latest": "step-600", "a": "..data", "b": "../elsewhere"}.items():
        (source / name).symlink_to(target)
    assert [one.name for one in source_of(str(source), None).found()] == ["a", "b", "step-600"]


def test_a_checkpoint_without_its_files_has_gone(tmp_path: Path) -> None:
    source = source_of(str(tmp_path), None)
    assert source.stamp(Checkpoint("gone", "", str(tmp_path / "gone"))) is None
    assert source.found() == []


@pytest.mark.parametrize("watch", ["s3://bucket/run", ""])
def test_only_a_hub_id_has_a_revision(watch: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a hub id has a revision"):
        source_of(watch or str(tmp_path), "main")
