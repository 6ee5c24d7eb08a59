"""The one error for what the user, not the code, can mend."""


class UserError(Exception):
    """Something the user can mend: a path, a file, an option.

    Its message is one sentence: what was expected, what was found and where, what to do. The command line prints
    that sentence and ends with exit code 1; every other exception is a bug and keeps its traceback.
    """
