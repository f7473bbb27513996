"""The one error that bad input raises, and the one warning."""


class UsageError(ValueError):
    """Bad input. The message is one line that names the value and the remedy; the command line prints it without a traceback."""


class Notice(UserWarning):
    """What goes on but should be known, such as a run that is resumed with other settings; the command line prints it as one line."""
