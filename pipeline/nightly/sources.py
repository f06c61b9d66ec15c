"""Where checkpoints come from: a folder, a prefix in an object store, the revisions of a hub id.

Checkpoints are ordered by name (checkpoint-900 before checkpoint-1000), those of a branch by its
commits. No clock is used.
"""

import re
from abc import ABC, abstractmethod
from fnmatch import fnmatch
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from schemas.errors import CheckpointError, ConfigError
from schemas.location import Url, kept_at_home, locate
from schemas.printable import is_unicode
from schemas.run.identity import fingerprint
from workers.checkpoint.config_file import HUB_ERRORS, not_given, read_config, require_hub_id
from workers.checkpoint.contents import tensors_of, weight_map
from workers.checkpoint.fetching import resolve
from workers.checkpoint.names import CONFIG, INDEX, WEIGHTS
from workers.checkpoint.tokenizer_files import TOKENIZER_FILES, TOKENIZERS, require_tokenizer
from workers.storage.files import sha256_of
from workers.storage.places import at_once, exists, folders_in, identity_of, names_in, url_of

_COUNTED = (CONFIG, INDEX, "*.safetensors", *TOKENIZER_FILES, "*processor*.json")
_IN_THE_MAKING = re.compile(r"[._]|tmp|.*[._-]tmp$", re.IGNORECASE)  # names of folders
_BRANCH, _EVERY = "main", "*"
P = TypeVar("P", Path, Url)


class Checkpoint(NamedTuple):
    """A checkpoint in a source; sorting by `order` puts the oldest first."""

    name: str
    order: str
    model: str
    revision: str | None = None


class Source(ABC):
    """A place in which checkpoints appear, and from which they may disappear."""

    @abstractmethod
    def found(self) -> list[Checkpoint]:
        """Return every checkpoint, complete or not, the oldest first."""

    @abstractmethod
    def stamp(self, checkpoint: Checkpoint) -> str | None:
        """Return a value that changes whenever its files do, without reading them; None if gone."""

    @abstractmethod
    def content(self, checkpoint: Checkpoint) -> str:
        """Return the identity of its contents.

        Raises CheckpointError if it is incomplete, OSError if it goes or may not be read.
        """


def source_of(watch: str, revision: str | None) -> Source:
    """Return the source that `--watch` names."""
    url, folder = url_of(watch), Path(locate(watch)).expanduser()
    if revision is not None and (url or folder.is_dir()):
        raise ConfigError(f"watch {watch!r}: only a hub id has a revision; leave out --revision")
    if url:
        return _Stored(url)
    if folder.is_dir():
        return _Folder(folder.resolve())
    if "/" not in watch.strip("/") or watch.startswith((".", "/", "~")):
        raise ConfigError(
            f"watch {watch!r}: no such folder; check the path, and whether it is mounted"
        )
    return _Hub(watch, revision or _BRANCH)


def natural(name: str) -> str:
    """Pad the numbers in a name to one width, so that names sort as people count."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


class _Below(Source, Generic[P]):
    """Checkpoints in the folders below a place."""

    def __init__(self, place: P) -> None:
        self._place: P = place

    def found(self) -> list[Checkpoint]:
        there = [name for name in folders_in(self._place) if not _IN_THE_MAKING.match(name)]
        names = [name for name in there if self._is_candidate(name)]
        if not names and exists(self._place / CONFIG):
            raise ConfigError(
                f"watch {self._place}: is a checkpoint itself; name the folder above it, or "
                "compress it with `svdllm compress`"
            )
        names.sort(key=lambda name: (natural(name), name))
        return [Checkpoint(name, natural(name), str(self._place / name)) for name in names]

    def _is_candidate(self, name: str) -> bool:
        try:
            return bool(self._files(name))
        except PermissionError:  # its files cannot be seen: it will be reported as incomplete
            return True

    def _files(self, name: str) -> list[str]:
        """Return its files on which a result depends; none if it is not a checkpoint or gone."""
        try:
            there = names_in(self._place / name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        if not any(file == CONFIG or file.endswith((".safetensors", INDEX)) for file in there):
            return []
        return [file for file in there if _counts(file)]


class _Folder(_Below[Path]):
    """Identified by SHA-256; read again if a size, a time or an inode has changed."""

    def _is_candidate(self, name: str) -> bool:
        """A link to another checkpoint here, such as `latest`, is none of its own."""
        target = (self._place / name).resolve()
        beside = target.parent == self._place and not _IN_THE_MAKING.match(target.name)
        return (target.name == name or not beside) and super()._is_candidate(name)

    def stamp(self, checkpoint: Checkpoint) -> str | None:
        folder, facts = self._place / checkpoint.name, []
        try:
            for name in self._files(checkpoint.name):
                stat = (folder / name).stat()
                facts.append([name, stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except (FileNotFoundError, PermissionError):  # it is changing, or we may not read it
            return ""
        return fingerprint(facts) if facts else None

    def content(self, checkpoint: Checkpoint) -> str:
        folder = self._place / checkpoint.name
        if not is_unicode(checkpoint.name):
            raise CheckpointError(f"{folder}: its name is not UTF-8; rename the folder")
        _require_complete(folder, None)
        return fingerprint(sha256_of(folder, self._files(checkpoint.name)))


class _Stored(_Below[Url]):
    """Identified by what the store says of each file, without reading any."""

    def found(self) -> list[Checkpoint]:
        if not (folders_in(self._place) or names_in(self._place)):
            raise ConfigError(
                f"watch {self._place}: nothing is there; check the URL, or wait for the first file"
            )
        return super().found()

    def stamp(self, checkpoint: Checkpoint) -> str | None:
        names = self._files(checkpoint.name)
        url = self._place / checkpoint.name
        try:
            versions = at_once(lambda name: identity_of(url / name), names)
        except FileNotFoundError:  # it is changing
            return ""
        return fingerprint(dict(zip(names, versions, strict=True))) if names else None

    def content(self, checkpoint: Checkpoint) -> str:
        url = self._place / checkpoint.name
        _require_complete(resolve(url, None, kept_at_home()), url)
        return self.stamp(checkpoint) or ""


class _Hub(Source):
    """Revisions of a repository, identified by the hashes that git and LFS keep of their files."""

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
                if isinstance(file, RepoFile) and _counts(file.path)
            }
            self._require_complete(checkpoint, set(files))
        except HUB_ERRORS as error:
            raise not_given(self._repo, error) from error
        return fingerprint(files)

    def _require_complete(self, checkpoint: Checkpoint, there: set[str]) -> None:
        """A file of the hub is whole or absent, but a commit may lack some of the files."""
        needed = {CONFIG, WEIGHTS}
        if INDEX in there:
            index = hf_hub_download(self._repo, INDEX, revision=checkpoint.revision)
            needed = {CONFIG, *weight_map(Path(index)).values()}
        missing = sorted(needed - there)
        if there.isdisjoint(TOKENIZERS):
            missing.insert(0, "tokenizer")
        if missing:
            raise CheckpointError(
                f"{self._repo} at {checkpoint.name}: no {', '.join(missing[:3])} in this revision"
            )

    def _at(self, name: str, order: str, commit: str) -> Checkpoint:
        return Checkpoint(name, order, self._repo, commit)


def _counts(name: str) -> bool:
    """Whether numbers depend on a file of this name; others may come and go beside it."""
    return any(fnmatch(name, pattern) for pattern in _COUNTED)


def _require_complete(folder: Path, weights: Url | None) -> None:
    """Raises CheckpointError if a file is missing or shorter than its header says."""
    tensors_of(folder, weights or folder)
    read_config(folder)
    require_tokenizer(folder)
