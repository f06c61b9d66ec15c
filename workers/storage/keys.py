"""Keys of the items of a run directory: each names everything that the item depends on."""

from typing import Literal

from schemas.run.identity import Identities
from schemas.run.moments import Tap

RUN_RECORD = "run.json"
KINDS = ("moments", "parts", "boundaries", "bases", "spectra", "factors", "outputs")
STAGING = "staging"
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


def speed_key(identity: str) -> str:
    """The key of how fast the hidden states of an identity were computed: it has no tensors."""
    return f"boundaries/{identity}/speed.safetensors"


def basis_key(identity: str, matrix: str) -> str:
    return f"bases/{identity}/{matrix}.safetensors"


def spectrum_key(identity: str, matrix: str) -> str:
    return f"spectra/{identity}/{matrix}.safetensors"


def factors_key(identity: str, matrix: str, rank: int) -> str:
    return f"factors/{identity}/{matrix}.rank-{rank}.safetensors"
