"""Linear layers with fewer bits, in the formats of compressed-tensors, which this alone imports."""

from importlib.util import find_spec

from schemas.errors import ConfigError


def require_installed() -> None:
    """Raises ConfigError if compressed-tensors is not installed."""
    if find_spec("compressed_tensors") is None:
        raise ConfigError(
            "fewer bits need compressed-tensors, which is not installed; install it with "
            "`pip install 'svdllm[quantize]'`, or everything in requirements.lock with "
            "`make install`"
        )
