"""What ends a script without being a bug."""


class UserError(Exception):
    """Something the user can mend: a path, a file, an option.

    Its message is one sentence: what was expected, what was found and where, what to do. The command line prints
    that sentence and ends with exit code 1; every other exception is a bug and keeps its traceback.
    """


class StoppedError(Exception):
    """A signal ended the work, after what was done had been written.

    Args:
        signal_number: The signal.
        message: Where what was done is, and what goes on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
