"""What the name of a text stands for: a local file, a known data set, or one on the hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from schemas.errors import TextError
from schemas.request.texts import shares_of
from workers.checkpoint.config_file import HUB_ERRORS
from workers.storage.files import file_sha256

Split = Literal["calibration", "evaluation"]

SUFFIXES = (".txt", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HELD_BACK = 1000  # first documents of a data set that has one split: they are for evaluation


class Part(NamedTuple):
    """What is read of a hub dataset: one split, or one file of it, or some of its documents."""

    split: str
    file: str | None = None
    documents: int | None = None
    skipped: int = 0


_ONE_SPLIT: Mapping[Split, Part] = MappingProxyType(
    {
        "calibration": Part("train", skipped=_HELD_BACK),
        "evaluation": Part("train", documents=_HELD_BACK),
    }
)
_USUAL: Mapping[Split, Part] = MappingProxyType(
    {"calibration": Part("train"), "evaluation": Part("test")}
)


class HubText(NamedTuple):
    """A hub dataset at a commit, or at what a branch stands for when it is read.

    `field` has the text or conversation of a row; None: it is found by its name. Documents are
    joined with `separator`. Empty rows are left out unless the convention is to join all rows.
    """

    repo: str
    parts: Mapping[Split, Part] = _USUAL
    config: str | None = None
    revision: str | None = None
    separator: str = "\n\n"
    field: str | None = None
    joins_empty: bool = False


# None has a loading script. Splits, files, separators and the 1,100 documents of the first three
# come from the GPTQ and SVD-LLM papers' code.
KNOWN: dict[str, HubText] = {
    "wikitext2": HubText(
        repo="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        joins_empty=True,
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
    "ptb": HubText(
        repo="ptb-text-only/ptb_text_only",
        revision="refs/convert/parquet",  # main has a loading script
        parts={
            "calibration": Part("train", file="penn_treebank/train/0000.parquet"),
            "evaluation": Part("test", file="penn_treebank/test/0000.parquet"),
        },
        field="sentence",
    ),
    "slimpajama": HubText(
        repo="DKYoon/SlimPajama-6B",
        revision="b5f90f419b7489cdba26fdbc8c022fcb5562f968",
    ),
    "fineweb-edu": HubText(
        repo="HuggingFaceFW/fineweb-edu",
        config="sample-10BT",
        revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        parts=_ONE_SPLIT,
    ),
    "codeparrot": HubText(
        repo="codeparrot/codeparrot-clean-valid",
        revision="4db92d2ec0c1b4c41eeb439cfae16854511d9dcd",
        parts=_ONE_SPLIT,
        field="content",
    ),
    "ultrachat": HubText(
        repo="HuggingFaceH4/ultrachat_200k",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
        parts={"calibration": Part("train_sft"), "evaluation": Part("test_sft")},
        field="messages",
    ),
}


def field_of(source: str) -> tuple[str, str | None]:
    """Split "a.jsonl#body" in the name of a text and the field of its rows; None if it has none."""
    name, _, field = source.rpartition("#")
    if not name or Path(source).suffix in SUFFIXES:
        return source, None
    return name, field


def local_file(source: str) -> Path | None:
    """Return the local file that a source is read from, if it is one."""
    name, _ = field_of(source)
    there = name not in KNOWN and Path(name).suffix in SUFFIXES
    return Path(name).expanduser() if there else None


def checksum_of(source: str) -> str | None:
    """Return the SHA-256 of the local file that a source is read from; None if there is none."""
    path = local_file(source)
    return file_sha256(path) if path is not None and path.is_file() else None


def is_local(source: str) -> bool:
    """Whether a source is read from a local file."""
    return local_file(source) is not None


def is_on_hub(source: str) -> bool:
    """Whether a source is a data set on the hub, by its name."""
    name, _ = field_of(source)
    there = Path(name).expanduser().exists()
    return name in KNOWN or not (is_local(source) or there or not _HUB_ID.fullmatch(name))


def hub_text(source: str) -> HubText:
    """Return the data set that a name on the hub stands for: a known one, or ORG/NAME@REVISION."""
    name, field = field_of(source)
    repo, _, revision = name.partition("@")
    found = KNOWN.get(name) or HubText(repo, revision=revision or None)
    return found._replace(field=field or found.field)


def commit_of(source: str) -> str | None:
    """Return the commit of a data set that is read now; None for a local file.

    Raises TextError if the hub does not tell.
    """
    if not is_on_hub(source):
        return None
    text = hub_text(source)
    if text.revision and _COMMIT.fullmatch(text.revision):
        return text.revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(text.repo, revision=text.revision).sha
    except HUB_ERRORS as error:
        raise not_read(f"hub dataset {text.repo}", error) from error


def evaluation_source(asked: str | None, calibration: Sequence[str]) -> str | None:
    """Return the text that a run compares base and result on: the one asked for; by default, the
    evaluation split of the first known data set that it calibrates on, else None; None for "none".
    """
    if asked is None:
        return next((text for text in shares_of(calibration) if field_of(text)[0] in KNOWN), None)
    return None if asked == "none" else asked


def not_read(where: str, error: Exception) -> TextError:
    """Return the error of a data set that the hub does not give."""
    return TextError(
        f"{where}: not read ({type(error).__name__}: {error}); check the name, the network and "
        "HF_TOKEN, or name a local .txt, .jsonl or .parquet file"
    )
