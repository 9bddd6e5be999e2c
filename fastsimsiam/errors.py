"""Errors that the user can fix."""


class UserError(ValueError):
    """Wrong input; the message is one line that names the file, key or value and the fix.

    The command line prints the message without a traceback and exits with code 2. Broken invariants
    of the package are `assert`s and keep their traceback.
    """


class BadImageError(UserError):
    """A file that is not an intact image; the message names the file and the reason."""
