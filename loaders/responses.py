"""A file on a web server, read from any of its bytes.

Errors are of two kinds. `OSError` and `http.client.HTTPException` may not come again. After
`Unavailable` another attempt at the same address is of no use.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

TIMEOUT_S = 30.0
_PAGE = 1 << 20  # bytes that are read of an HTML page
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_PASSING = (408, 425, 429)  # statuses below 500 that may not come again


class Unavailable(Exception):
    """The address does not give the file."""


ERRORS = (OSError, HTTPException, Unavailable)


class Response(NamedTuple):
    """The bytes of a file from `start` on. total: of the whole file, None where it is not said."""

    stream: HTTPResponse
    start: int
    total: int | None


def open_at(address: str, start: int = 0) -> Response | None:
    """The file at an http(s) address from byte `start` on, or whole where the server refuses that;
    None where it has no more bytes.

    Raises Unavailable, OSError or HTTPException.
    """
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise Unavailable("it is no http or https address")
    headers = {"User-Agent": "rib-engine"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        request = urllib.request.Request(address, headers=headers)
        stream = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is no longer than the range's start
            return None
        passes = error.code >= 500 or error.code in _PASSING
        kind = OSError if passes else Unavailable
        raise kind(f"the server answers {error.code} {error.reason}") from error
    if stream.headers.get_content_type() == "text/html":
        with stream:
            title = _TITLE.search(stream.read(_PAGE).decode(errors="replace"))
        named = " ".join(title[1].split()) if title else "no title"
        raise Unavailable(f"a web page comes in place of the file: {named}")
    if stream.status != 206:
        length = stream.headers.get("Content-Length")
        return Response(stream, 0, int(length) if length else None)
    sent = _RANGE.fullmatch(stream.headers.get("Content-Range", ""))
    if sent is None or int(sent[1]) != start:
        stream.close()
        raise Unavailable("the server sends bytes of another place in the file")
    return Response(stream, start, None if sent[2] == "*" else int(sent[2]))
