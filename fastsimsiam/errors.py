"""The exception for what the user can fix."""

import re

_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")


class UserError(ValueError):
    """Wrong input. The message is one line: the file, key or value, and how to fix it.

    The command line prints the message alone and exits with code 2. Broken invariants of the package
    are `assert`s and keep their traceback.
    """

    def __init__(self, message: str = "") -> None:
        """Takes the message; objects with a memory address, which PIL quotes, are left out."""
        super().__init__(_ADDRESS.sub("", message))


class BadImageError(UserError):
    """A file that is not an intact image; the message names the file and the reason.

    Attributes:
        fix: what the user can do about this file, for the end of a message.
    """

    fix = "restore it"

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        """Takes the message, and what to do about this file if it is not the usual."""
        super().__init__(message)
        if fix:
            self.fix = fix

    def __reduce__(self) -> tuple[type, tuple[str], dict[str, str]]:
        """Keeps `fix` between processes."""
        return BadImageError, (str(self),), {"fix": self.fix}


class DamagedError(UserError):
    """Content of a file that no version of this package has written."""
