"""Everything that jaxrec raises by itself; each message names the place and the fix."""


class DataError(ValueError):
    """The user's data cannot be used; the message names the place and the fix."""


class FetchError(OSError):
    """A file could not be downloaded, or is not the file that was expected."""


class ConfigError(ValueError):
    """An option that does not exist, or a value that does not fit it."""


class RunError(ValueError):
    """A run directory that is missing, incomplete, in the way, or of another version."""


class StoreError(OSError):
    """The store cannot be reached, is held by others for too long, or is full."""


class CheckpointError(ValueError):
    """A checkpoint that is not a BERT, or whose weights are not those that its config promises."""


class Interrupted(SystemExit):
    """Training was asked to stop and has saved its state."""


class Diverged(ValueError):
    """The loss is not finite."""
