"""What can be wrong with a work directory."""

from block_recurrent.config import ConfigError


class WorkdirInUse(RuntimeError):
    """Another process is training in the work directory."""


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit the model; the message says how."""


class RunError(ValueError):
    """A file of a run cannot be read; the message names the file and line."""


class SelectionError(RunError, ConfigError):
    """Runs that do not go together, or not with the other options; the message names them."""


class Damaged(CheckpointError):
    """A checkpoint is not as it was written; the message names the file or array."""


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are as they were."""
