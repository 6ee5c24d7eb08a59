"""What ends a command without being a bug."""

import errno
import signal
from typing import Final

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The errors of a disk that is full, a quota that is used up, and a file that is larger than the system allows."""

REFUSALS: Final = NO_ROOM | {errno.EACCES, errno.EPERM, errno.EROFS}
"""What a system may refuse that is the user's to mend: rights, a read-only or full disk, a quota, a file too large."""


class UserError(Exception):
    """Something the user can mend: a path, a file, an option.

    Its message is one sentence: what was expected, what was found and where, what to do. The command line prints
    that sentence and ends with exit code 1; every other exception is a bug and keeps its traceback.
    """


class ConfigError(UserError):
    """A config or a command line that is wrong in itself; the command line ends with exit code 2."""


SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a command to end: Ctrl-C, `kill` and a closed terminal, which Windows does not have."""


class StoppedError(BaseException):
    """A signal ended the work, after what was done had been written.

    Not an `Exception`, as `KeyboardInterrupt` is none: libraries that catch every `Exception` would swallow the signal.

    Args:
        signal_number: The signal.
        message: Where what was done is, and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
