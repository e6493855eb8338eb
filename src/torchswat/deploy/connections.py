"""Connections that a client cannot hold for ever: limits on their number, and on the seconds that headers take."""

from __future__ import annotations

import asyncio
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_RESERVED = 64  # descriptors that the process needs beside its connections


def most_connections(wanted: int) -> int:
    """Return how many connections fit the process's limit on open files, at most `wanted`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _RESERVED))


def bounded(seconds: float, most: int) -> type[H11Protocol]:
    """Return the protocol of connections whose headers arrive within `seconds`, and of which there are `most`."""

    class Bounded(H11Protocol):
        _headers_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                self._end(b"503 Service Unavailable")
            else:
                self._watch_headers()

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)
                self._watch_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_headers()
            super().connection_lost(exc)

        def _watch_headers(self) -> None:
            """Start the clock where a request has not sent all its headers, and stop it where it has."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._forget_headers()
            elif self._headers_due is None:
                self._headers_due = self.loop.call_later(seconds, self._end, b"408 Request Timeout")

        def _forget_headers(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _end(self, status: bytes) -> None:
            self._forget_headers()
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()

    return Bounded
