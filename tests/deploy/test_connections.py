"""What a client can hold open, and for how long: real sockets against a service in a process of its own."""

from __future__ import annotations

import http.client
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("uvicorn")

from torchswat.deploy.connections import most_connections

from .test_service import ask, counter, serving


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half"])
def test_headers_that_do_not_arrive_end_the_connection(model: Path, sent: bytes):
    with serving(model, "--header-seconds", 0.5) as address, connect(address) as connection:
        connection.sendall(sent)
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_half_sent_headers_on_a_kept_connection_end_it(model: Path, pictures: list[Path]):
    with serving(model, "--header-seconds", 0.5) as address:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("POST", "/predict", pictures[0].read_bytes())
        assert connection.getresponse().read()
        connection.sock.sendall(b"GET /health HTTP/1.1\r\n")
        assert read_all(connection.sock).startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_slow_clients_do_not_keep_others_out(model: Path, pictures: list[Path]):
    """Two hundred half-sent requests at a limit of 128 open files: another client is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))  # which the service inherits
    try:
        serve = serving(model, "--header-seconds", 1)
        address = serve.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    slow = []
    try:
        for _ in range(200):
            slow.append(connect(address))
            slow[-1].sendall(b"POST /predict HTTP/1.1\r\n")
        time.sleep(1.5)
        assert ask(address, "POST", "/predict", pictures[0].read_bytes())[0] == 200
    finally:
        for connection in slow:
            connection.close()
        serve.__exit__(None, None, None)


def test_more_connections_than_allowed_are_told_so(model: Path):
    with serving(model, "--max-connections", 3) as address:
        held = [connect(address) for _ in range(3)]
        time.sleep(0.2)
        with connect(address) as one_more:
            assert read_all(one_more).startswith(b"HTTP/1.1 503 ")
        for connection in held:
            connection.close()
        time.sleep(0.2)
        assert ask(address, "GET", "/health")[0] == 200


def test_the_limit_on_connections_leaves_files_for_the_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert most_connections(1000) == 192 and most_connections(10) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_body_that_is_far_too_long_hears_so(model: Path):
    """A client that sends 25 MB before it reads gets an answer, and no reset."""
    with serving(model) as address:
        status, found = ask(address, "POST", "/predict", bytes(25 * 10**6))
        assert status == 413 and "bytes at most" in found["error"]


def test_a_body_that_does_not_arrive_is_answered(model: Path):
    with serving(model, "--body-seconds", 0.5) as address, connect(address) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        assert counter(address, 'torchswat_requests_total{model="network",status="408"}') == 1


def test_a_signal_ends_it_in_spite_of_a_stalled_body(model: Path):
    command = [sys.executable, "-m", "torchswat", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split("//")[1].strip().strip("/")
        with connect(address) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert ask(address, "GET", "/health")[0] == 200  # it has met the request
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
            assert 4 < time.monotonic() - begun < 20 and "Traceback" not in errors
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
    finally:
        process.kill()
        process.wait()


class _Bare(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *values: object) -> None:
        pass


def test_a_kept_connection_waits_for_no_acknowledgement(model: Path, pictures: list[Path]):
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a request; a bare server shows the rest."""
    body = pictures[0].read_bytes()

    def seconds(address: str) -> float:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(60):
            begun = time.perf_counter()
            connection.request("POST", "/predict", body)
            assert connection.getresponse().read()
            times.append(time.perf_counter() - begun)
        connection.close()
        return median(times[20:])  # at first the system acknowledges at once

    bare = HTTPServer(("127.0.0.1", 0), _Bare)
    threading.Thread(target=bare.serve_forever, daemon=True).start()
    try:
        with serving(model, "--threads", 1) as address:
            pairs = [(seconds(f"127.0.0.1:{bare.server_port}"), seconds(address)) for _ in range(3)]
    finally:
        bare.shutdown()
        bare.server_close()
    assert median(mine - theirs for theirs, mine in pairs) < 0.03, pairs
