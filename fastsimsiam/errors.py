"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Wrong input: a file, a key or a value, with the mend, in one line.

    The command line prints the message alone and exits with code 2. Broken invariants of our own
    are `assert`s and keep their traceback.
    """


class BadImageError(UserError):
    """A file that is not a whole image; the message names the file and what is wrong with it."""
