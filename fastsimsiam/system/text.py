"""Names of files as text that a terminal, a log or a JSON file can show.

A file's name is any bytes: Python gives those that are not UTF-8 as lone surrogates, which no output
accepts, and a name may hold newlines and a terminal's escape sequences.
"""

import re

from fastsimsiam.config.location import spelled

_BYTES = re.compile("[\udc80-\udcff]+")
# Control characters, separators of lines, marks that turn the direction of text, lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""A name, path or URL for people: what is not UTF-8 or not printable is escaped, `\xf1`, `\n`."""
    text = _BYTES.sub(lambda found: _as_text(found[0]), spelled(text))
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """`printable` for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def is_utf8(text: str) -> bool:
    """Whether a name is UTF-8."""
    return not _BYTES.search(text)


def as_bytes(text: str) -> bytes:
    """A name as UTF-8; the bytes of the file's name, where the text comes from the file system."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other lone surrogates, from a JSON file for instance
        return text.encode("utf-8", "surrogatepass")


def _as_text(surrogates: str) -> str:
    """Bytes that are no UTF-8 as escapes. In an ASCII locale all of a name beyond ASCII comes so."""
    return surrogates.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
