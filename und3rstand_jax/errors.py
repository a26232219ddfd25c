"""The one exception whose message is written for the person at the command line."""


class UserError(ValueError):
    """Something the caller gave cannot be used.

    The message says what was expected, what was found and what to do. The command lines print it as one
    line on stderr and exit with status 2; from Python it is raised as it is.
    """
