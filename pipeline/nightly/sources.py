"""Where checkpoints come from: a folder, a prefix in an object store, the revisions of a hub id.

Their order is that of their names (checkpoint-900 before checkpoint-1000), of a branch that of its
commits. No clock is asked.
"""

import re
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from schemas.errors import CheckpointError, ConfigError
from schemas.location import Url, locate
from schemas.printable import is_unicode
from schemas.run.identity import fingerprint
from workers.checkpoint.config_file import HUB_ERRORS, not_given, require_hub_id
from workers.checkpoint.contents import inspect, weight_map
from workers.checkpoint.fetching import resolve
from workers.checkpoint.folder import is_wanted
from workers.checkpoint.names import CONFIG, INDEX, WEIGHTS
from workers.checkpoint.tokenizer_files import require_tokenizer
from workers.storage.files import sha256_of
from workers.storage.places import IN_FLIGHT, exists, folders_in, identity_of, names_in, url_of

_IDLE = ("generation_config.json", "trainer_state.json", "README.md")
_IN_THE_MAKING = re.compile(r"[._]|tmp|.*[._-]tmp$", re.IGNORECASE)  # names of folders
_BRANCH, _EVERY = "main", "*"


class Checkpoint(NamedTuple):
    """One of a source; `order` sorts from the oldest on."""

    name: str
    order: str
    model: str
    revision: str | None = None


class Source(ABC):
    """A place in which checkpoints appear, and from which they may disappear."""

    @abstractmethod
    def found(self) -> list[Checkpoint]:
        """Every checkpoint, complete or not, from the oldest on."""

    @abstractmethod
    def stamp(self, checkpoint: Checkpoint) -> str | None:
        """What changes whenever its files do, found without reading them; None if it is gone."""

    @abstractmethod
    def content(self, checkpoint: Checkpoint) -> str:
        """The identity of what is in its files. Raises CheckpointError if it is not complete."""


def source_of(watch: str, revision: str | None) -> Source:
    """The source that `--watch` names."""
    if url := url_of(watch):
        return _Stored(url)
    folder = Path(locate(watch)).expanduser()
    if folder.is_dir():
        return _Folder(folder.resolve())
    if "/" not in watch.strip("/") or watch.startswith((".", "/", "~")):
        raise ConfigError(
            f"watch {watch!r}: no such folder; check the path, and whether it is mounted"
        )
    return _Hub(watch, revision or _BRANCH)


def natural(name: str) -> str:
    """A name that sorts as people count: every number in it has the same width."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


class _Below(Source):
    """Checkpoints that are folders below a place."""

    def __init__(self, place: Path | Url) -> None:
        self._place = place

    def found(self) -> list[Checkpoint]:
        if exists(self._place / CONFIG):
            raise ConfigError(
                f"watch {self._place}: is a checkpoint itself; name the folder above it, or "
                "compress it with `svdllm compress`"
            )
        there = [name for name in folders_in(self._place) if not _IN_THE_MAKING.match(name)]
        names = [name for name in there if self._is_candidate(name)]
        names.sort(key=lambda name: (natural(name), name))
        return [Checkpoint(name, natural(name), str(self._place / name)) for name in names]

    def _is_candidate(self, name: str) -> bool:
        try:
            return bool(self._files(name))
        except PermissionError:  # what it is cannot be seen: it is named as not complete
            return True

    def _files(self, name: str) -> list[str]:
        """Its files on which a result depends; none if it is no checkpoint, or has gone."""
        try:
            there = names_in(self._place / name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        if not any(file == CONFIG or file.endswith((".safetensors", INDEX)) for file in there):
            return []
        return [file for file in there if is_wanted(file) and file not in _IDLE]


class _Folder(_Below):
    """Identified by SHA-256; looked at again where a size, a time or an inode is another."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._root = place

    def stamp(self, checkpoint: Checkpoint) -> str | None:
        folder, facts = self._root / checkpoint.name, []
        try:
            for name in self._files(checkpoint.name):
                stat = (folder / name).stat()
                facts.append([name, stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except (FileNotFoundError, PermissionError):  # it changes at this moment, or is not ours
            return ""
        return fingerprint(facts) if facts else None

    def content(self, checkpoint: Checkpoint) -> str:
        folder = self._root / checkpoint.name
        if not is_unicode(checkpoint.name):
            raise CheckpointError(f"{folder}: its name is not UTF-8; rename the folder")
        _require_complete(folder, None)
        return fingerprint(sha256_of(folder, self._files(checkpoint.name)))


class _Stored(_Below):
    """Identified by what the store says of each file; none is read for it."""

    def __init__(self, place: Url) -> None:
        super().__init__(place)
        self._url = place

    def stamp(self, checkpoint: Checkpoint) -> str | None:
        names = self._files(checkpoint.name)
        url = self._url / checkpoint.name
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                versions = list(pool.map(lambda name: identity_of(url / name), names))
            except FileNotFoundError:  # it changes at this moment
                return ""
        return fingerprint(dict(zip(names, versions, strict=True))) if names else None

    def content(self, checkpoint: Checkpoint) -> str:
        url = self._url / checkpoint.name
        _require_complete(resolve(url, None, Path.home() / ".cache" / "svdllm"), url)
        return self.stamp(checkpoint) or ""


class _Hub(Source):
    """Revisions of a repository, identified by what git and LFS know of their files."""

    def __init__(self, repo: str, branch: str) -> None:
        require_hub_id(repo)
        self._repo, self._branch, self._api = repo, branch, HfApi()

    def found(self) -> list[Checkpoint]:
        try:
            if self._branch != _EVERY:
                commits = self._api.list_repo_commits(self._repo, revision=self._branch)
                ids = [commit.commit_id for commit in reversed(commits)]
                return [self._at(name, f"{i:012}", name) for i, name in enumerate(ids, start=1)]
            refs = self._api.list_repo_refs(self._repo)
        except HUB_ERRORS as error:
            raise not_given(self._repo, error) from error
        named = {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
        return [
            self._at(name, natural(name), named[name])
            for name in sorted(named, key=lambda name: (natural(name), name))
        ]

    def stamp(self, checkpoint: Checkpoint) -> str | None:
        return checkpoint.revision

    def content(self, checkpoint: Checkpoint) -> str:
        try:
            tree = self._api.list_repo_tree(self._repo, revision=checkpoint.revision)
            files = {
                file.path: file.lfs.sha256 if file.lfs else file.blob_id
                for file in tree
                if isinstance(file, RepoFile) and is_wanted(file.path) and file.path not in _IDLE
            }
            self._require_complete(checkpoint, set(files))
        except HUB_ERRORS as error:
            raise not_given(self._repo, error) from error
        return fingerprint(files)

    def _require_complete(self, checkpoint: Checkpoint, there: set[str]) -> None:
        """Files of the hub are whole or not there; a commit may lack some of them."""
        needed = {CONFIG, WEIGHTS}
        if INDEX in there:
            index = hf_hub_download(self._repo, INDEX, revision=checkpoint.revision)
            needed = {CONFIG, *weight_map(Path(index)).values()}
        if missing := sorted(needed - there):
            raise CheckpointError(
                f"{self._repo} at {checkpoint.name}: no {', '.join(missing[:3])} in this revision"
            )

    def _at(self, name: str, order: str, commit: str) -> Checkpoint:
        return Checkpoint(name, order, self._repo, commit)


def _require_complete(folder: Path, weights: Url | None) -> None:
    """Raises CheckpointError if a file is missing or shorter than its header says."""
    try:
        inspect(folder, weights)
        require_tokenizer(folder)
    except OSError as error:  # it changes at this moment
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}") from error
