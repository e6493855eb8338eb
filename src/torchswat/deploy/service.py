"""A small HTTP service around one network.

=====================  ======================================================================================
``POST /predict``      the body is a picture file; JSON with the most probable classes (``?top=5``)
``GET /health``        JSON: what runs here
``GET /metrics``       counters in the text format of Prometheus
``GET /``              a page to drop a picture on
=====================  ======================================================================================

What a client can make it do is limited: bytes of a request, pixels of a picture, seconds that a body may
take, pictures that wait. It listens on this machine alone unless told otherwise, and knows no passwords:
towards a network that is not trusted belongs a proxy that does.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import anyio
import anyio.to_thread
import torch
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from torchswat import __version__
from torchswat.deploy.batching import Batcher, Full
from torchswat.deploy.predict import Reader, best
from torchswat.engine import info
from torchswat.errors import InvalidData, InvalidValue, TorchswatError
from torchswat.runtime.network import Network

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}


@dataclass(frozen=True)
class Limits:
    """What a client can make the service do.

    Attributes
    ----------
    bytes : int
        Of a request's body.
    seconds : float
        That a body may take to arrive.
    batch : int
        Pictures that the network sees at once.
    room : int
        Pictures that may wait; more are refused with status 503.
    """

    bytes: int = 10 * 2**20
    seconds: float = 30
    batch: int = 64
    room: int = 256


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def make_service(network: Network, limits: Limits) -> Starlette:
    """Return the service as an ASGI application."""
    service = _Service(network, limits)
    page = [Route(f"/{path}", service.page(*file), methods=["GET"]) for path, file in _PAGE.items()]
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/metrics", service.metrics, methods=["GET"]),
        *page,
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


class _Service:
    def __init__(self, network: Network, limits: Limits) -> None:
        self.network, self.limits = network, limits
        self.reader, self.batcher = Reader(network), Batcher(network, limits.batch, limits.room)
        self.answers: Counter[int] = Counter()  # by status
        self.seconds = 0.0
        self.reading = 0  # requests whose body or picture is being read
        # A decoded picture may take hundreds of megabytes: no more at once than there are threads for.
        self.decoders = anyio.CapacityLimiter(torch.get_num_threads())
        self.started = time.time()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run while the service does."""
        async with self.batcher.running():
            yield

    async def predict(self, request: Request) -> Response:
        """Answer with the most probable classes."""
        begun = time.perf_counter()
        try:
            body = await self._predict(request)
        except Refused as error:
            self.answers[error.status] += 1
            # What was not read of a body must not be taken for the next request.
            headers = {**_HEADERS, "Connection": "close"} if error.status in (408, 413) else dict(_HEADERS)
            if error.status == 503:
                headers["Retry-After"] = "1"
            return JSONResponse({"error": error.words}, error.status, headers)
        except ClientDisconnect:
            self.answers[499] += 1
            return Response(status_code=400)
        except Exception:  # the client hears that it failed, the log how
            logging.getLogger(__name__).exception("A request failed.")
            self.answers[500] += 1
            return JSONResponse({"error": "this failed here; the log of the service says how"}, 500, _HEADERS)
        seconds = time.perf_counter() - begun
        self.answers[200] += 1
        self.seconds += seconds
        return JSONResponse({**body, "milliseconds": 1000 * seconds}, headers=_HEADERS)

    async def _predict(self, request: Request) -> dict[str, Any]:
        top = request.query_params.get("top", "5")
        if not (top.isascii() and top.isdecimal()) or not 0 < int(top[:9]) <= 1000:
            raise Refused(400, f"top is {top!r:.40}; allowed is a whole number from 1 to 1000")
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise Refused(
                415, "the body must be the picture file itself, not a form: curl --data-binary @FILE"
            )
        if self.reading + self.batcher.waiting >= self.limits.room:
            raise Refused(503, "too many pictures wait already; try again in a second")
        self.reading += 1
        try:
            content = await self._body(request)
            pixels = await anyio.to_thread.run_sync(self.reader.read, content, limiter=self.decoders)
        except InvalidData as error:
            raise Refused(415, str(error)) from None
        except TorchswatError as error:
            raise Refused(500, str(error)) from None
        finally:
            self.reading -= 1
        try:
            probabilities = await self.batcher.probabilities(pixels)
        except Full:
            raise Refused(503, "too many pictures wait already; try again in a second") from None
        return {"guesses": [guess.to_json() for guess in best(self.network, probabilities, int(top))]}

    async def _body(self, request: Request) -> bytes:
        """Read a body and keep no more than the limit.

        Up to as much again is read and forgotten: a client hears an answer only when it has sent its body.
        """
        too_long = Refused(413, f"a picture may have {self.limits.bytes} bytes at most")
        claimed = request.headers.get("content-length", "")
        if claimed.isdecimal() and int(claimed[:18]) > 2 * self.limits.bytes:
            raise too_long
        content, arrived = bytearray(), 0
        try:
            with anyio.fail_after(self.limits.seconds):
                async for part in request.stream():
                    arrived += len(part)
                    if arrived > 2 * self.limits.bytes:
                        raise too_long
                    if arrived <= self.limits.bytes:
                        content += part
        except TimeoutError:
            raise Refused(408, f"the picture took more than {self.limits.seconds} s to arrive") from None
        if arrived > self.limits.bytes:
            raise too_long
        if not content:
            raise Refused(400, "the body of the request must be a picture file; it is empty")
        return bytes(content)

    async def health(self, request: Request) -> Response:
        """Tell what runs here."""
        package = self.network.package
        about = {
            "status": "ok",
            "version": __version__,
            "engine": info(),
            "input_shape": list(package.graph.input_shape),
            "classes": len(package.about.classes) or None,
            "provenance": dict(package.about.provenance),
            "limits": vars(self.limits),
            "uptime_seconds": round(time.time() - self.started, 1),
        }
        return JSONResponse(about, headers=_HEADERS)

    async def metrics(self, request: Request) -> Response:
        """Return the counters."""
        sizes = self.batcher.sizes
        lines = [
            "# TYPE torchswat_requests_total counter",
            *(f'torchswat_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.answers.items())),
            "# TYPE torchswat_request_seconds summary",
            f"torchswat_request_seconds_sum {self.seconds:.6f}",
            f"torchswat_request_seconds_count {self.answers[200]}",
            "# TYPE torchswat_batch_size summary",
            f"torchswat_batch_size_sum {sum(size * count for size, count in sizes.items())}",
            f"torchswat_batch_size_count {sum(sizes.values())}",
            "# TYPE torchswat_batch_size_largest gauge",
            f"torchswat_batch_size_largest {max(sizes, default=0)}",
            "# TYPE torchswat_pictures_waiting gauge",
            f"torchswat_pictures_waiting {self.batcher.waiting}",
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4", headers=_HEADERS)

    @staticmethod
    def page(name: str, kind: str) -> Callable[[Request], Response]:
        """Return what answers with a file of the page."""
        text = resources.files("torchswat.deploy").joinpath("page").joinpath(name).read_text(encoding="utf-8")
        return lambda request: Response(text, media_type=kind, headers=_HEADERS)


def serve(network: Network, host: str, port: int, limits: Limits, ready: Callable[[str], object]) -> None:
    """Serve until a signal ends it; `ready` is told the address once it is taken (port 0: any free one)."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            make_service(network, limits), log_level="warning", timeout_keep_alive=10, access_log=False
        )
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port))
            taken.listen(512)
        except OSError as error:
            raise InvalidValue(
                f"cannot listen on {host}, port {port}: {error.strerror or error}. Name others by --host and "
                "--port; port 0 takes any that is free."
            ) from None
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{taken.getsockname()[1]}/")
        server.run(sockets=[taken])
