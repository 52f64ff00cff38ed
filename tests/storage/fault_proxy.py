"""A small HTTP proxy that misbehaves on demand, before a real server."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONDITIONS = ("if-none-match", "if-match")


@dataclass
class Faults:
    """What goes wrong; may be changed while the proxy runs.

    Attributes:
        fail_rate: Share of requests answered with a code of `codes` before they reach the server.
        codes: Answers of failing requests.
        fail_until: Monotonic time until which every request fails.
        cut_at: Answers to GET are cut after this many bytes, `cuts` times.
        lose_answers: So many PUTs are carried out, but their answer never arrives.
        conflicts: So many PUTs are answered 409 without being carried out.
        forbid: Methods answered 403.
        strip_conditions: Conditional headers never reach the server.
        bytes_per_s: Bodies trickle.
        delay_s: Silence before each answer.
    """

    seed: int = 0
    fail_rate: float = 0.0
    codes: tuple[int, ...] = (500, 503)
    fail_until: float = 0.0
    cut_at: int = 0
    cuts: int = 0
    lose_answers: int = 0
    conflicts: int = 0
    forbid: tuple[str, ...] = ()
    strip_conditions: bool = False
    bytes_per_s: float = 0.0
    delay_s: float = 0.0
    requests: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    credentials: tuple[str, str] = ("", "")

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self.lock = threading.Lock()

    def answer_instead(self, method: str) -> int | None:
        """A code to answer without asking the server."""
        with self.lock:
            if time.monotonic() < self.fail_until or self._random.random() < self.fail_rate:
                return self._random.choice(self.codes)
            if method in self.forbid:
                return 403
            if method == "PUT" and self.conflicts > 0:
                self.conflicts -= 1
                return 409
            return None

    def take(self, name: str) -> bool:
        """Use up one of a counted fault."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return left > 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Cut connections are this server's business."""


@contextmanager
def fault_proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """Run the proxy; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            pass

        def _serve(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with faults.lock:
                faults.requests.append(f"{self.command} {self.path}")
            time.sleep(faults.delay_s)
            code = faults.answer_instead(self.command)
            if code is not None:
                self._answer(code, b"", {"Content-Length": "0"})
                return
            status, headers, data = _forward(
                upstream, self.command, self.path, dict(self.headers.items()), body, faults
            )
            if self.command == "PUT" and faults.take("lose_answers"):
                self._hang_up()
                return
            cut = self.command == "GET" and len(data) > faults.cut_at > 0 and faults.take("cuts")
            self._answer(status, data[: faults.cut_at] if cut else data, headers)
            if cut:
                self._hang_up()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _answer(self, status: int, data: bytes, headers: dict[str, str]):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            rate, step = faults.bytes_per_s, 1024
            for start in range(0, len(data), step if rate else len(data) or 1):
                chunk = data[start : start + step] if rate else data
                self.wfile.write(chunk)
                with faults.lock:
                    faults.bytes_sent += len(chunk)
                if rate:
                    time.sleep(len(chunk) / rate)

        def _hang_up(self):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _forward(
    upstream: str, method: str, path: str, headers: dict[str, str], body: bytes, faults: Faults
) -> tuple[int, dict[str, str], bytes]:
    host = urlsplit(upstream).netloc
    if faults.strip_conditions and any(name.lower() in CONDITIONS for name in headers):
        headers = _signed_anew(f"http://{host}{path}", method, headers, body, faults.credentials)
    connection = HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, body, {**headers, "Connection": "close"})
        response = connection.getresponse()
        data = response.read()
        answer = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        if method != "HEAD" and response.status not in (204, 304):
            answer["Content-Length"] = str(len(data))
        return response.status, answer, data
    finally:
        connection.close()


def _signed_anew(
    url: str, method: str, headers: dict[str, str], body: bytes, credentials: tuple[str, str]
) -> dict[str, str]:
    """The request as a client without conditions would have sent it: the signature covers all headers."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    dropped = (*CONDITIONS, "authorization", "x-amz-date", "x-amz-content-sha256", "host", "content-length", "expect")
    kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
    request = AWSRequest(method=method, url=url, headers=kept, data=body)
    S3SigV4Auth(Credentials(*credentials), "s3", "us-east-1").add_auth(request)
    return {**dict(request.headers.items()), "Content-Length": str(len(body))}
