"""The exception for what the user can fix."""


class UserError(ValueError):
    """Wrong input. The message is one line: the file, key or value, and how to fix it.

    The command line prints the message alone and exits with code 2. Broken invariants of the package
    are `assert`s and keep their traceback.
    """


class BadImageError(UserError):
    """A file that is not an intact image; the message names the file and the reason."""


class DamagedError(UserError):
    """Content of a file that no version of this package has written."""
