"""Every error that jaxrec raises; each message says what is wrong, where, and the fix."""


class DataError(ValueError):
    """The user's data cannot be used."""


class FetchError(OSError):
    """A file could not be downloaded, or its content is not the expected one."""


class ConfigError(ValueError):
    """An option does not exist, or its value does not fit."""


class RunError(ValueError):
    """A run or output directory is missing, incomplete, in the way, or of another version."""


class StoreError(OSError):
    """The store cannot be reached, is locked for too long, or is full."""


class CheckpointError(ValueError):
    """A checkpoint is not a BERT, or its weights do not fit its configuration."""


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM stopped the process; the exit code is 128 + the signal's number."""


class Diverged(ValueError):
    """The loss is not finite."""
