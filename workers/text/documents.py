"""Documents from local files and from datasets on the hub, one string at a time."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow  # type: ignore[import-untyped]
from pyarrow import parquet

from schemas.errors import TextError

Split = Literal["calibration", "evaluation"]

_SEPARATOR = "\n\n"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Part(NamedTuple):
    """What is read of a hub dataset: one split, or one file of it, or its first documents."""

    split: str
    file: str | None = None
    documents: int | None = None


class HubText(NamedTuple):
    """A hub dataset with a string column `text`, at a commit."""

    repo: str
    parts: Mapping[Split, Part]
    config: str | None = None
    revision: str | None = None
    separator: str = _SEPARATOR


# Splits, files, separators and the 1,100 documents come from the GPTQ and SVD-LLM papers' code.
KNOWN: dict[str, HubText] = {
    "wikitext2": HubText(
        repo="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        parts={"calibration": Part("train"), "evaluation": Part("test")},
    ),
    "c4": HubText(
        repo="allenai/c4",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        separator=" ",
        parts={
            "calibration": Part("train", file="en/c4-train.00000-of-01024.json.gz"),
            "evaluation": Part(
                "validation", file="en/c4-validation.00000-of-00008.json.gz", documents=1100
            ),
        },
    ),
}


def separator_of(source: str) -> str:
    """Return the separator between the documents of a source when they are joined."""
    return KNOWN[source].separator if source in KNOWN else _SEPARATOR


def is_local(source: str) -> bool:
    """Whether a source is read from a local file."""
    return source not in KNOWN and Path(source).suffix in _READERS


def is_on_hub(source: str) -> bool:
    """Whether a source is a data set on the hub, by its name."""
    there = Path(source).expanduser().exists()
    return source in KNOWN or not (is_local(source) or there or not _HUB_ID.fullmatch(source))


def evaluation_source(asked: str | None, calibration: str) -> str | None:
    """Return the text that a run compares base and result on: the one asked for; by default, the
    evaluation split of a known data set that it calibrates on, else None; None for "none".
    """
    if asked is None:
        return calibration if calibration in KNOWN else None
    return None if asked == "none" else asked


def iter_documents(source: str, split: Split) -> Iterator[str]:
    """Yield the documents of a .txt, .jsonl or .parquet file, a known dataset, or a hub id.

    A local file has no splits. Nothing is read before the first document is asked for.
    Raises TextError if the source cannot be read or holds no text.
    """
    if is_local(source):
        documents = _local_documents(Path(source).expanduser())
    elif is_on_hub(source):
        parts: dict[Split, Part] = {"calibration": Part("train"), "evaluation": Part("test")}
        documents = _hub_documents(KNOWN.get(source) or HubText(source, parts), split)
    else:
        raise TextError(
            f"text {source!r}: not a file of a known kind ({', '.join(_READERS)}), not a known "
            f"data set ({', '.join(KNOWN)}) and not a hub id like org/name; convert it to one"
        )
    empty = True
    for document in documents:
        empty = empty and not document.strip()
        yield document
    if empty:
        raise TextError(f"text {source!r} ({split}): empty; name a source that holds text")


def _hub_documents(text: HubText, split: Split) -> Iterator[str]:
    import datasets  # type: ignore[import-untyped]  # as slow as torch, and seldom needed

    # For an unreachable hub, an unknown name, split or file, and a loading script.
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    part = text.parts[split]
    files = None if part.file is None else {part.split: part.file}
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
        for number, row in enumerate(itertools.islice(rows, part.documents), start=1):
            yield _text_of(row, f"{where}, row {number}")
    except failures as error:
        raise TextError(
            f"{where}: not read ({type(error).__name__}: {error}); check the name, the network and "
            "HF_TOKEN, or name a local .txt, .jsonl or .parquet file"
        ) from error


def _local_documents(path: Path) -> Iterator[str]:
    try:
        if path.exists() and not path.is_file():
            raise TextError(f"text file {path}: not a plain file; name a file")
        yield from _READERS[path.suffix](path)
    except FileNotFoundError as error:
        raise TextError(f"text file {path}: not found; check the path") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise TextError(f"text file {path}: cannot be read ({error}); write it anew") from error


def _read_txt(path: Path) -> Iterator[str]:
    raw = path.read_bytes()
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


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise TextError(
                    f"{path}, line {number}: not JSON in UTF-8 ({error}); "
                    'write one object a line, like {"text": "..."}'
                ) from error
            yield _text_of(row, f"{path}, line {number}")


def _read_parquet(path: Path) -> Iterator[str]:
    with parquet.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise TextError(
                f"{path}: no column 'text' (found {', '.join(file.schema_arrow.names) or 'none'}); "
                "rename the column that holds the text"
            )
        batches = file.iter_batches(columns=["text"], batch_size=1024)
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        for number, value in enumerate(values, start=1):
            try:
                row = {"text": value.as_py()}
            except UnicodeDecodeError as error:
                raise TextError(
                    f"{path}, row {number}: not UTF-8 ({error}); convert the file"
                ) from error
            yield _text_of(row, f"{path}, row {number}")


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _text_of(row: object, where: str) -> str:
    """Return the string under `text`; refuses lone surrogates, which JSON can hold."""
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise TextError(f"{where}: no string under 'text'; every row needs one")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{where}: not valid Unicode ({error}); correct or drop it") from error
    return text
