"""Every error this program raises on purpose.

    CompressorError
    ├── InputError            exit 2   the request or its input is wrong; nothing was computed
    │   ├── ConfigError                a field of the configuration
    │   ├── CheckpointError            a file or tensor of a checkpoint
    │   └── TextError                  calibration or evaluation text
    └── RunError              exit 3   a run failed part-way; the same command continues it
        ├── NumericsError              a value that must be finite or definite is not
        ├── WorkerError                a worker failed or missed its deadline
        │   └── WorkerDiedError             its process or its node is gone
        ├── OwnershipError             another driver works in the run directory
        └── VerificationError          a written checkpoint is not what was meant

A message says what is wrong, where (field, file, layer, matrix), the value, and the remedy.
"""


class CompressorError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(CompressorError):
    """The request or its input is wrong; nothing was computed."""

    exit_code = 2


class ConfigError(InputError):
    """A field of the configuration is wrong."""


class CheckpointError(InputError):
    """A file or tensor of a checkpoint is missing, malformed or unsupported."""


class TextError(InputError):
    """Calibration or evaluation text is missing, malformed or too short."""


class RunError(CompressorError):
    """A run failed part-way; starting the same command again continues it."""

    exit_code = 3


class NumericsError(RunError):
    """A value that must be finite (or a matrix that must be definite) is not."""


class WorkerError(RunError):
    """A worker failed, ran out of memory or missed its deadline."""


class WorkerDiedError(WorkerError):
    """The process of a worker, or its node, is gone."""


class OwnershipError(RunError):
    """Another driver works in the same run directory."""


class VerificationError(RunError):
    """A written checkpoint is not what was meant."""
