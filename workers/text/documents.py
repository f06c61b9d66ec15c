"""Documents from local files and from datasets on the hub, one at a time."""

import itertools
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
from pyarrow import parquet

from schemas.errors import TextError
from workers.checkpoint.config_file import HUB_ERRORS
from workers.text.rows import Document, columns, document_of, is_empty
from workers.text.sources import (
    KNOWN,
    SUFFIXES,
    HubText,
    Split,
    field_of,
    hub_text,
    is_on_hub,
    local_file,
    not_read,
)


def iter_documents(source: str, split: Split, commit: str | None = None) -> Iterator[Document]:
    """Yield the documents of a .txt, .jsonl or .parquet file, a known dataset, or a hub id, the
    latter at a commit, if one is given.

    A local file has no splits. Nothing is read before the first document is asked for.
    Raises TextError if the source cannot be read or holds no text.
    """
    if path := local_file(source):
        documents = _local_documents(path, field_of(source)[1])
    elif is_on_hub(source):
        text = hub_text(source)
        documents = _hub_documents(text._replace(revision=commit or text.revision), split)
    else:
        raise TextError(
            f"text {source!r}: not a file of a known kind ({', '.join(SUFFIXES)}), not a known "
            f"data set ({', '.join(KNOWN)}) and not a hub id like org/name; convert it to one"
        )
    empty = True
    for document in documents:
        empty = empty and is_empty(document)
        yield document
    if empty:
        raise TextError(f"text {source!r} ({split}): empty; name a source that holds text")


def require_readable(texts: Iterable[str], split: Split = "evaluation") -> None:
    """Raises TextError if a local text cannot be read, or one is of no known kind."""
    for text in texts:
        if not is_on_hub(text):
            for _ in iter_documents(text, split):
                pass


def _hub_documents(text: HubText, split: Split) -> Iterator[Document]:
    import datasets  # type: ignore[import-untyped]  # as slow as torch, and seldom needed

    # For an unreachable hub, an unknown name, split or file, and a loading script.
    failures = (*HUB_ERRORS, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    part = text.parts[split]
    files = None if part.file is None else {part.split: part.file}
    last = None if part.documents is None else part.skipped + part.documents
    where = f"hub dataset {text.repo} ({text.config or 'default'}, {part.split})"
    try:
        rows = datasets.load_dataset(
            text.repo,
            text.config,
            split=part.split,
            revision=text.revision,
            data_files=files,
            streaming=True,
        )
        wanted = itertools.islice(enumerate(rows, start=1), part.skipped, last)
        for number, row in wanted:
            yield document_of(row, text.field, f"{where}, row {number}")
    except failures as error:
        raise not_read(where, error) from error


def _local_documents(path: Path, field: str | None) -> Iterator[Document]:
    try:
        if path.exists() and not path.is_file():
            raise TextError(f"text file {path}: not a plain file; name a file")
        yield from _READERS[path.suffix](path, field)
    except FileNotFoundError as error:
        raise TextError(f"text file {path}: not found; check the path") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise TextError(f"text file {path}: cannot be read ({error}); write it anew") from error


def _read_txt(path: Path, field: str | None) -> Iterator[Document]:
    if field is not None:
        raise TextError(f"text file {path}: has no field {field!r}; leave out what follows #")
    raw = path.read_bytes().removeprefix(BOM_UTF8)
    if (at := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, at) + 1
        raise TextError(
            f"{path}, line {line}: a NUL byte, so no text in UTF-8 (but UTF-16, or no text); "
            "convert the file"
        )
    try:
        yield raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path}, line {line}: not UTF-8 ({error}); convert the file") from error


def _read_jsonl(path: Path, field: str | None) -> Iterator[Document]:
    with path.open("rb") as file:
        lines = (line.removeprefix(BOM_UTF8) for line in file)  # files may have been joined
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise TextError(
                    f"{path}, line {number}: not JSON in UTF-8 ({error}); "
                    'write one object a line, like {"text": "..."}'
                ) from error
            yield document_of(row, field, f"{path}, line {number}")


def _read_parquet(path: Path, field: str | None) -> Iterator[Document]:
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = columns(names, field)
        if not wanted:
            raise TextError(
                f"{path}: no column {field or 'text'!r} (found {', '.join(names) or 'none'}); "
                "rename the column that holds the text, or name it, as FILE#COLUMN"
            )
        batches = file.iter_batches(columns=wanted, batch_size=1024)
        rows = ((batch, row) for batch in batches for row in range(batch.num_rows))
        for number, (batch, row) in enumerate(rows, start=1):
            try:
                found = {name: batch.column(name)[row].as_py() for name in wanted}
            except UnicodeDecodeError as error:
                raise TextError(
                    f"{path}, row {number}: not UTF-8 ({error}); convert the file"
                ) from error
            yield document_of(found, field, f"{path}, row {number}")


_READERS: dict[str, Callable[[Path, str | None], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
