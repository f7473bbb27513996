"""The one error that bad input raises."""


class UsageError(ValueError):
    """Bad input. The message is one line that names the value and the remedy; the command line prints it without a traceback."""
