"""Every error this program raises on purpose.

    CompressorError
    ├── InputError            exit 2   the request or its input is wrong; nothing was computed
    │   ├── ConfigError                a field of the configuration
    │   │   ├── ClusterError                the Ray cluster is absent, or lacks what is asked for
    │   │   ├── DiskError                   a disk has no room for what a run will write
    │   │   └── BudgetError                 a size that no ranks here can keep
    │   ├── CheckpointError            a file or tensor of a checkpoint
    │   └── TextError                  calibration or evaluation text
    └── RunError              exit 3   a run failed part-way
        ├── NumericsError              a value that must be finite or definite is not
        ├── StorageError               storage does not answer, or answers with errors
        │   ├── StorageFullError            it is full, over quota or read-only
        │   └── DamagedError                an item is absent, or not what was written
        ├── WorkerError                a worker failed
        │   ├── NodesError                  the nodes are at fault, whatever runs on them
        │   └── WorkerDiedError             its process or its node is gone
        │       ├── WorkerHungError          it does not answer within a deadline
        │       └── WorkerStartError         its own code fails while it starts
        ├── QuarantineError            items that failed again and again, by name
        ├── OwnershipError             another driver works in the run directory
        └── VerificationError          a written checkpoint is not as intended

A message says what is wrong, where (field, file, layer, matrix), the value, and the remedy.
"""

import errno

from schemas.printable import printable

STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of an OSError that is StorageFullError


class CompressorError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns.

    Its message is made `printable`, whatever foreign names and texts it quotes.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(CompressorError):
    """The request or its input is wrong; nothing was computed."""

    exit_code = 2


class ConfigError(InputError):
    """A field of the configuration is wrong."""


class BudgetError(ConfigError):
    """A size, or a number of parameters, that no ranks here can keep."""


class ClusterError(ConfigError):
    """The Ray cluster is absent, has another version, or lacks what was asked for."""


class DiskError(ConfigError):
    """A disk has no room for what a run will write."""


class CheckpointError(InputError):
    """A file or tensor of a checkpoint is missing, malformed or unsupported."""


class TextError(InputError):
    """Calibration or evaluation text is missing, malformed or too short."""


class RunError(CompressorError):
    """A run failed part-way; the same command goes on from its run directory, if it has one."""

    exit_code = 3


class NumericsError(RunError):
    """A value that must be finite (or a matrix that must be definite) is not."""


class StorageError(RunError):
    """Storage does not answer, or answers with errors, after several tries."""


class StorageFullError(StorageError):
    """Storage is full, over its quota or read-only. Retrying cannot help."""


class DamagedError(StorageError):
    """An item is absent, or not what was written. The next start makes it anew."""


class WorkerError(RunError):
    """A worker failed, or ran out of memory."""


class NodesError(WorkerError):
    """The nodes are at fault, whatever runs on them: they are gone, full, or not of one kind."""


class WorkerDiedError(WorkerError):
    """The process of a worker, or its node, is gone, with all it held in memory."""


class WorkerHungError(WorkerDiedError):
    """A worker does not answer within a deadline, and is taken to be dead."""


class WorkerStartError(WorkerDiedError):
    """The code of a worker fails while it starts: a missing library, a module of another version,
    or a runtime environment that cannot be set up.
    """


class QuarantineError(RunError):
    """Items that failed again and again; everything else is finished."""


class OwnershipError(RunError):
    """Another driver works in the same folder."""


class VerificationError(RunError):
    """A written checkpoint is not as intended."""
