"""Every error that jaxrec raises; each message says what is wrong, where, and the fix.

The command line reports an `InputError` or an `OSError` in one line; any other exception is a
defect and keeps its traceback.
"""


class InputError(ValueError):
    """The caller's input cannot be used."""


class DataError(InputError):
    """The user's data cannot be used."""


class ConfigError(InputError):
    """An option does not exist, or its value does not fit."""


class LimitError(InputError):
    """A limit of the service is reached."""


class RunError(InputError):
    """A run or output directory is missing, incomplete, in the way, or of another version."""


class Busy(RunError):
    """Another process is writing to a directory."""


class CheckpointError(InputError):
    """A checkpoint is not a BERT, or its weights do not fit its configuration."""


class Diverged(InputError):
    """The loss or a vector is not finite."""


class Refused(Exception):
    """A new run is worse than the last one, so it should not be served."""


class FetchError(OSError):
    """A file could not be downloaded, or its content is not the expected one."""


class StoreError(OSError):
    """The store cannot be reached, is locked for too long, or is full."""


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM stopped the process; the exit code is 128 + the signal's number."""
