"""Errors of a model hub's client, which share no base class."""

from __future__ import annotations

try:
    # The class of the HTTP library: a refused connection raises it too, not the client's class.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
except ImportError:  # an older client raises OSErrors only
    HTTPError = OSError

ERRORS = (OSError, RuntimeError, HTTPError)


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its class if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
