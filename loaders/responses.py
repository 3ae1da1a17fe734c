"""A file on a web server, read from any of its bytes; redirects and Google Drive's page are passed.

Errors are of two kinds. `OSError` and `http.client.HTTPException` may not come again. After
`Unavailable` another attempt at the same address is of no use.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from http.cookiejar import CookieJar

TIMEOUT_S = 30.0
_PAGE = 1 << 20  # bytes that are read of an HTML page
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_PASSING = (408, 425, 429)  # statuses below 500 that may not come again


class Unavailable(Exception):
    """The address does not give the file."""


ERRORS = (OSError, HTTPException, Unavailable)


@dataclass
class Response:
    """The bytes of a file from `start` on. total: of the whole file, None where it is not said."""

    stream: HTTPResponse
    start: int
    total: int | None


def open_at(address: str, start: int = 0) -> Response | None:
    """The file at an http(s) address from byte `start` on, or whole where the server refuses that;
    None where it has no more bytes.

    Raises Unavailable, OSError or HTTPException.
    """
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    headers = {"User-Agent": "rib-engine"} | ({"Range": f"bytes={start}-"} if start else {})
    stream = _request(opener, address, headers)
    if stream is not None and stream.headers.get_content_type() == "text/html":
        with stream:
            confirmed = _confirmed(stream.url, stream.read(_PAGE).decode(errors="replace"))
        stream = _request(opener, confirmed, headers)
        if stream is not None and stream.headers.get_content_type() == "text/html":
            with stream:
                raise Unavailable(_is_a_page(stream.read(_PAGE).decode(errors="replace")))
    return stream and _response(stream, start)


def _request(
    opener: urllib.request.OpenerDirector, address: str, headers: dict[str, str]
) -> HTTPResponse | None:
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise Unavailable("it is no http or https address")
    request = urllib.request.Request(address, headers=headers)
    try:
        return opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is no longer than the range's start
            return None
        if error.code >= 500 or error.code in _PASSING:
            raise OSError(f"the server answers {error.code} {error.reason}") from error
        raise Unavailable(f"the server answers {error.code} {error.reason}") from error


def _response(stream: HTTPResponse, start: int) -> Response:
    length = stream.headers.get("Content-Length")
    if stream.status != 206:
        return Response(stream, 0, int(length) if length else None)
    sent = _RANGE.fullmatch(stream.headers.get("Content-Range", ""))
    if sent is None or int(sent[1]) != start:
        stream.close()
        raise Unavailable("the server sends bytes of another place in the file")
    return Response(stream, start, None if sent[2] == "*" else int(sent[2]))


class _Form(HTMLParser):
    """The first form of a page with a hidden field `confirm`, and the page's title."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.forms: list[tuple[str, dict[str, str]]] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_title = tag == "title"
        if tag == "form":
            self.forms.append((values.get("action", ""), {}))
        elif tag == "input" and self.forms and values.get("type") == "hidden":
            self.forms[-1][1][values.get("name", "")] = values.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
            self._in_title = False


def _confirmed(address: str, page: str) -> str:
    """The address that a page's form leads to: Google Drive asks so before it sends large files."""
    parsed = _Form()
    parsed.feed(page)
    for action, fields in parsed.forms:
        if "confirm" in fields:
            target = urllib.parse.urljoin(address, action)
            joint = "&" if urllib.parse.urlsplit(target).query else "?"
            return target + joint + urllib.parse.urlencode(fields)
    raise Unavailable(_is_a_page(page))


def _is_a_page(page: str) -> str:
    parsed = _Form()
    parsed.feed(page)
    return f"a web page comes in place of the file: {' '.join(parsed.title.split()) or 'no title'}"
