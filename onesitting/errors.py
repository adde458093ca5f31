"""The one exception that a user sees as a message instead of a traceback."""


class UserError(ValueError):
    """A wrong setting, file or record: what it is, the value found, the next action.

    The command line prints it as one line (`error: …`) and exits with code 2.
    """
