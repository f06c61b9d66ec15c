"""Keys of the items of a run directory: each names everything that the item depends on."""

from typing import Literal

from schemas.run.identity import Identities
from schemas.run.moments import Tap

RUN_RECORD = "run.json"
KINDS = (
    *("moments", "parts", "boundaries", "bases", "spectra", "neurons", "factors", "recovered"),
    "outputs",
)
STAGING = "staging"
TRAINING = "training"  # what a recovery needs to go on: Ray Train's checkpoints, refined layers
OWNER = "owner"
Carried = Literal["hidden", "gradient"]


def moment_key(ids: Identities, tap: Tap) -> str:
    return f"moments/{ids.moments(tap.direction)}/{tap.name}.safetensors"


def part_key(ids: Identities, tap: Tap, replica: int, replicas: int) -> str:
    """The key of one replica's sums, until they are merged."""
    identity = ids.moments(tap.direction)
    return f"parts/{identity}/{tap.name}.{replica}-of-{replicas}.safetensors"


def boundary_prefix(identity: str, layer: int, carried: Carried) -> str:
    """The prefix of what enters layer `layer` (hidden states) or comes back from it (gradients)."""
    return f"boundaries/{identity}/layer-{layer}/{carried}"


def boundary_key(identity: str, layer: int, carried: Carried, sequence: int) -> str:
    """The key of one micro-batch of these, by the number of its first window."""
    return f"{boundary_prefix(identity, layer, carried)}/{sequence}.safetensors"


def speed_key(identity: str) -> str:
    """The key of how fast the hidden states of an identity were computed: it has no tensors."""
    return f"boundaries/{identity}/speed.safetensors"


def basis_key(ids: Identities, matrix: str) -> str:
    return f"bases/{ids.bases}/{matrix}.safetensors"


def spectrum_key(ids: Identities, matrix: str) -> str:
    return f"spectra/{ids.bases}/{matrix}.safetensors"


def neurons_key(ids: Identities, reader: str) -> str:
    """The key of the order in which the neurons that a matrix reads are removed."""
    return f"neurons/{ids.neurons}/{reader}.safetensors"


def factors_key(ids: Identities, matrix: str, rank: int, pruned: bool = False) -> str:
    """The key of a matrix at a rank, or of one that lacks some neurons, with as many of them."""
    identity, what = (ids.neurons, "neurons") if pruned else (ids.factors, "rank")
    return f"factors/{identity}/{matrix}.{what}-{rank}.safetensors"


def recovered_prefix(identity: str) -> str:
    """The prefix of all that a recovery commits."""
    return f"recovered/{identity}"


def recovered_key(identity: str, matrix: str | None) -> str:
    """The key of a matrix's factors after recovery; without a matrix, of what recovery found, which
    is committed last.
    """
    return f"{recovered_prefix(identity)}/{matrix or 'result'}.safetensors"


def recovered_norms_key(identity: str) -> str:
    """The key of the weights of norms after recovery, by their names in the base's files."""
    return f"{recovered_prefix(identity)}/norms.safetensors"


def refined_prefix(identity: str) -> str:
    """The prefix, below `TRAINING`, of the layers that a recovery has refined."""
    return f"refined/{identity}"


def refined_key(identity: str, layer: int) -> str:
    """The key of the trained parameters of one of them."""
    return f"{refined_prefix(identity)}/{layer}.safetensors"


def recovered_text_key(identity: str) -> str:
    """The key of the windows that a recovery trains on, and of those held out."""
    return f"{recovered_prefix(identity)}/text.safetensors"
