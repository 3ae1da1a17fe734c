"""What goes wrong on the way to a model hub: its client's errors have no base of their own."""

from __future__ import annotations

try:
    # Not the client's own class but its HTTP library's, which a refused connection raises too.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
except ImportError:  # of an older client all are OSErrors
    HTTPError = OSError

ERRORS = (OSError, RuntimeError, HTTPError)


def reason(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
