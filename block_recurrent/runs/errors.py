"""What can be wrong with a work directory."""


class WorkdirInUse(RuntimeError):
    """Another process is training in the work directory."""


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit the model; the message says how."""


class Damaged(CheckpointError):
    """A checkpoint is not as it was written; the message names the file or array."""


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are as they were."""
