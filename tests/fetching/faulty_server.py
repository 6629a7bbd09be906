"""An HTTP server whose faults are planned: each request for a path meets the next fault on its list, then the file as it is."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer to GET.

    Parameters
    ----------
    status : sent in place of the file.
    headers : sent besides.
    cut_after : so many bytes of the answer's content are sent, then the connection is closed.
    says : the length that is declared.
    wrong : one byte is another one.
    ignores_range : the whole file is sent, whatever was asked for.
    begins_at : the place that a range answer says it begins at.
    says_no_length : the content ends where the connection does, as of HTTP/1.0.
    chunked_cut_after : the content comes in chunks, and the connection is closed after so many bytes.
    pause_s : time between pieces of `piece` bytes.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    says: int | None = None
    wrong: bool = False
    ignores_range: bool = False
    begins_at: int | None = None
    says_no_length: bool = False
    chunked_cut_after: int | None = None
    pause_s: float = 0.0
    piece: int = 1 << 16


@dataclass
class FaultyServer:
    """What the server holds, what is to go wrong, and what it was asked.

    Parameters
    ----------
    files : path → content.
    faults : path → the faults of its next GETs; `always` → the fault of every one after them.
    heads : path → the fault of every HEAD (status, headers, says).
    log : (method, path, Range header) of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    heads: dict[str, Fault] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def gets(self, path: str) -> list[str | None]:
        """Return the Range headers of the GETs of a path."""
        return [wanted for method, asked, wanted in self.log if (method, asked) == ("GET", path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_HEAD(self) -> None:
        self._answer(self._plan.heads.get(self._name, Fault()), body=False)

    def do_GET(self) -> None:
        listed = self._plan.faults.get(self._name, [])
        self._answer(listed.pop(0) if listed else self._plan.always.get(self._name, Fault()), body=True)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    @property
    def _plan(self) -> FaultyServer:
        return self.server.plan

    @property
    def _name(self) -> str:
        return self.path.lstrip("/")

    def _answer(self, fault: Fault, *, body: bool) -> None:
        wanted = self.headers.get("Range")
        self._plan.log.append((self.command, self._name, wanted))
        content = self._plan.files.get(self._name)
        if fault.status is not None or content is None:
            self.send_response(fault.status or 404)
            for key, value in {"Content-Length": "0", **fault.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            return
        if fault.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, status = 0, 200
        if wanted and not fault.ignores_range:
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self._send(content, start, status, fault, body=body)

    def _send(self, content: bytes, start: int, status: int, fault: Fault, *, body: bool) -> None:
        self.send_response(status)
        if status == 206:
            said = start if fault.begins_at is None else fault.begins_at
            self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", self._plan.tags.get(self._name, f'"{len(content)}"'))
        for key, value in fault.headers.items():
            self.send_header(key, value)
        chunked = fault.chunked_cut_after is not None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not fault.says_no_length:
            self.send_header("Content-Length", str(len(content) - start if fault.says is None else fault.says))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if not body:
            return
        end = fault.chunked_cut_after if chunked else fault.cut_after
        rest = content[start:] if end is None else content[start : start + end]
        for at in range(0, len(rest), fault.piece):
            piece = rest[at : at + fault.piece]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            self.wfile.flush()
            time.sleep(fault.pause_s)
        if end is not None or fault.says is not None or fault.says_no_length:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    plan: FaultyServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Serve on a free port of this machine while the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.plan = FaultyServer(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.plan
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
