"""A web server on this machine whose files have faults: cut connections, refused ranges, pages."""

import contextlib
import copy
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class File:
    """What the server has at a path, and how it fails. length: the Content-Length, where it says
    one; True: the right one. drip: bytes that come one by one, each after so many seconds.

    cuts: for each request in turn, after how many bytes the connection ends. statuses: answers in
    place of the file, for each request in turn. retry_after: a header of these.
    """

    content: bytes = b""
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    ranges: bool = True
    length: bool | str = True
    drip: float = 0.0
    redirect: str = ""
    kind: str = "application/octet-stream"


@dataclass
class Web:
    """The server: its files by path, the (path, Range header) of each request, and how many files
    it sends now (`busy`) and sent at once at most (`most`)."""

    address: str
    files: dict[str, File]
    requests: list[tuple[str, str]]
    busy: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, name: str, **values) -> str:
        """Put a file on the server; its address."""
        self.files[name] = File(**copy.deepcopy(values))  # its lists are used up
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    web = Web("", {}, [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
    web.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.lstrip("/")
            web.requests.append((path, self.headers.get("Range", "")))
            file = web.files.get(path)
            if file is None:
                self.send_error(404)
            elif file.statuses:
                self._refuse(file.statuses.pop(0), file.retry_after)
            elif file.redirect:
                self.send_response(302)
                self.send_header("Location", file.redirect)
                self.end_headers()
            else:
                with web.lock:
                    web.busy += 1
                    web.most = max(web.most, web.busy)
                self._file(file)

        def _refuse(self, status: int, retry_after: str) -> None:
            self.send_response(status)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, file: File) -> None:
            start = 0
            if file.ranges and (begins := self.headers.get("Range")):
                start = int(begins.removeprefix("bytes=").removesuffix("-"))
                if start >= len(file.content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            body = file.content[start:]
            if start:
                total = len(file.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if file.length:
                length = len(body) if file.length is True else file.length
                self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", file.kind)
            self.end_headers()
            if file.cuts:
                body = body[: file.cuts.pop(0)]
            end = len(body) - 1 if file.drip else 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client went away
                for place in range(end):
                    time.sleep(file.drip)
                    self.wfile.write(body[place : place + 1])
            with web.lock:  # before the client has the last byte, and may ask for the next file
                web.busy -= 1
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body[max(end, 0) :])

    return Handler
