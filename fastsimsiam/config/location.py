"""Data sets at URLs. `Config.data` is a `Path`, which keeps one of the two slashes of `s3://`."""

import re

_SCHEMES = "s3|gs|https?"
# Not within a path: a folder may have a name that ends with a colon.
_SHORTENED = re.compile(rf"(?<![\w/])({_SCHEMES}):/(?=[^/\s])")
_URL = re.compile(rf"({_SCHEMES})://[^/]")


def spelled(text: object) -> str:
    """A path or a message as text, its URLs with the two slashes that a `Path` has made one."""
    return _SHORTENED.sub(r"\1://", str(text))


def url_of(data: object) -> str | None:
    """The URL of a data set; None for a path of the file system.

    Args:
        data: a path or a text; both `s3://BUCKET` and the `s3:/BUCKET` of a `Path` are URLs.
    """
    text = spelled(data)
    return text if _URL.match(text) else None
