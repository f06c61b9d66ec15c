"""The rows that a night writes to the catalogue, and the names in them."""

import re
from collections.abc import Sequence

from pipeline.nightly.ledger import label
from pipeline.nightly.sources import Checkpoint
from schemas.request.nightly import CatalogRow, Event
from schemas.result.manifest import OutputResult
from workers.checkpoint.published import read_manifest


def row_of(
    event: Event, checkpoint: Checkpoint, key: str, folder: str, detail: str = ""
) -> CatalogRow:
    """Make the row of an event of a checkpoint."""
    return CatalogRow(
        event=event,
        name=checkpoint.name,
        order=checkpoint.order,
        key=key,
        folder=folder,
        detail=detail,
    )


def slug(name: str) -> str:
    """Turn a name into a safe folder name."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-")[:64] or "checkpoint"


def judged(row: CatalogRow, output: OutputResult, why: Sequence[str]) -> CatalogRow:
    """Make a row that of an output: rejected if there are reasons, else published."""
    models = output.evaluation.models if output.evaluation else [None]
    base, compressed = models[0], models[-1]
    return row.model_copy(
        update={
            "event": "rejected" if why else "published",
            "ratio": output.ratio,
            "path": f"checkpoints/{row.folder}/ratio-{label(output.ratio)}",
            "output": read_manifest(output.path).output,
            "detail": "; ".join(why),
            "parameters": output.compression.parameters_after,
            "bytes": output.compression.bytes_after,
            "base_perplexity": base and base.perplexity,
            "perplexity": compressed and compressed.perplexity,
            "kl": compressed and compressed.kl,
        }
    )
