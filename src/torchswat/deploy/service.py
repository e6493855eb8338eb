"""A small HTTP service around one or several networks.

=============================  ==============================================================================
``POST /predict``              the body is an image file; JSON with the most probable classes (``?top=5``); of
                               several models ``?model=NAME`` names one
``POST /v2/models/M/infer``    tensors in, tensors out: the KServe v2 protocol, with ``GET /v2``,
                               ``/v2/health/live``, ``/v2/health/ready``, ``/v2/models/M``, ``/v2/models/M/ready``
``GET /health``                JSON: what runs here
``GET /metrics``               counters and histograms in the text format of Prometheus
``GET /``                      a page to drop an image on
=============================  ==============================================================================

What a client can make it do is limited: connections, seconds that headers and a body take, bytes of a request, pixels
of an image, images in the queue. It listens on this machine alone unless told otherwise, and knows no passwords: put it
behind a proxy that does where the network is not trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchswat import __version__
from torchswat.deploy import kserve
from torchswat.deploy.batching import Batcher, Full
from torchswat.deploy.connections import bounded, most_connections
from torchswat.deploy.metrics import Metrics
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
_DISCARDED = 16
"""Times the limit on a body that is read and forgotten, so that its client reads the refusal and no reset."""
_FULL = "the queue is full; try again in a second"


@dataclass(frozen=True)
class Limits:
    """What a client can make the service do.

    Attributes
    ----------
    bytes : int
        Of a request's body.
    seconds : float
        That a body may take to arrive.
    header_seconds : float
        That a request's headers may take to arrive.
    connections : int
        Open at once; fewer where the process may open fewer files.
    batch : int
        Images that the network sees at once.
    room : int
        Images in the queue; more are refused with status 503.
    ending_seconds : float
        For which requests that were taken go on after a signal to end.
    """

    bytes: int = 10 * 2**20
    seconds: float = 30
    header_seconds: float = 10
    connections: int = 1000
    batch: int = 64
    room: int = 256
    ending_seconds: float = 5


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status: int = status
        self.words: str = words


def make_service(networks: Mapping[str, Network], limits: Limits) -> ASGIApp:
    """Return the service of `networks`, by name, as an ASGI application; the first is the one that `/predict` means."""
    service = _Service(networks, limits)
    page = [Route(f"/{path}", service.page(*file), methods=["GET"]) for path, file in _PAGE.items()]
    model = "/v2/models/{name}"
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/metrics", service.scrape, methods=["GET"]),
        Route("/v2", service.about, methods=["GET"]),
        Route("/v2/health/live", service.ready, methods=["GET"]),
        Route("/v2/health/ready", service.ready, methods=["GET"]),
        *(Route(f"{model}{version}", service.metadata, methods=["GET"]) for version in _VERSIONS),
        *(Route(f"{model}{version}/ready", service.ready, methods=["GET"]) for version in _VERSIONS),
        *(Route(f"{model}{version}/infer", service.infer, methods=["POST"]) for version in _VERSIONS),
        *page,
    ]
    return _Ending(Starlette(routes=routes, lifespan=service.lifespan))


_VERSIONS = ("", f"/versions/{kserve.VERSION}")


class _Ending:
    """Answers 503 where the end of the service cancels a request, instead of a traceback in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not begun:
                await JSONResponse({"error": "the service ends"}, 503, _HEADERS)(scope, receive, send)


class _Model:
    """One network with its queue."""

    def __init__(
        self, name: str, network: Network, limits: Limits, turn: asyncio.Lock, metrics: Metrics
    ) -> None:
        self.name, self.network = name, network
        self.batcher = Batcher(network, limits.batch, limits.room, turn, metrics.sizes.labels(name).observe)
        if len(network.package.graph.inputs) != 1 or len(network.package.graph.outputs) != 1:
            raise InvalidValue(
                f"{name} has {len(network.package.graph.inputs)} inputs and {len(network.package.graph.outputs)} "
                "outputs; networks with one of each can be served"
            )
        self.outputs = network.package.output_shapes()[0][1:]
        try:
            self.reader: Reader | None = Reader(network)
        except InvalidValue:
            self.reader = None  # no image file fits it; tensors do


class _Service:
    def __init__(self, networks: Mapping[str, Network], limits: Limits) -> None:
        self.limits, self.turn = limits, asyncio.Lock()
        self.metrics = Metrics(lambda: sum(model.batcher.queued for model in self.models.values()))
        self.models: dict[str, _Model] = {
            name: _Model(name, network, limits, self.turn, self.metrics) for name, network in networks.items()
        }
        self.reading = 0  # requests whose body or image is being read
        # A decoded image may take hundreds of megabytes: no more at once than there are threads for.
        self.decoders = anyio.CapacityLimiter(torch.get_num_threads())
        self.started = time.time()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run while the service does."""
        async with contextlib.AsyncExitStack() as stack:
            for model in self.models.values():
                await stack.enter_async_context(model.batcher.running())
            yield

    # ---- requests that run a network

    async def predict(self, request: Request) -> Response:
        """Answer with the most probable classes."""
        return await self._answered(request, request.query_params.get("model"), self._predict)

    async def infer(self, request: Request) -> Response:
        """Answer tensors with tensors."""
        return await self._answered(request, request.path_params["name"], self._infer)

    async def _answered(
        self, request: Request, name: str | None, answer: Callable[[Request, _Model], Awaitable[Response]]
    ) -> Response:
        """Run a request, count it, and turn what is refused and what fails into answers."""
        begun, counted = time.perf_counter(), name if name in self.models else ""
        status, headers = 500, dict(_HEADERS)
        try:
            model = self._model(name)
            counted = model.name
            response = await answer(request, model)
        except Refused as error:
            status = error.status
            if status in (408, 413):  # what was not read of a body must not be taken for the next request
                headers["Connection"] = "close"
            if status == 503:
                headers["Retry-After"] = "1"
            response = JSONResponse({"error": error.words}, status, headers)
        except ClientDisconnect:
            status, response = 499, Response(status_code=400)
        except Exception:  # the client hears that it failed, the log how
            logging.getLogger(__name__).exception("A request failed.")
            response = JSONResponse(
                {"error": "this failed here; the log of the service says how"}, 500, headers
            )
        else:
            status = 200
            self.metrics.seconds.labels(counted).observe(time.perf_counter() - begun)
        self.metrics.requests.labels(counted, str(status)).inc()
        return response

    def _model(self, name: str | None) -> _Model:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(404, f"there is no model {name!r:.60}; there are {', '.join(self.models)}")
        return self.models[name]

    async def _predict(self, request: Request, model: _Model) -> Response:
        begun = time.perf_counter()
        top = request.query_params.get("top", "5")
        if not (top.isascii() and top.isdecimal()) or not 0 < int(top[:9]) <= 1000:
            raise Refused(400, f"top is {top!r:.40}; allowed is a whole number from 1 to 1000")
        if model.reader is None:
            raise Refused(400, f"the model {model.name!r} takes no image files; send tensors to /v2/models")
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise Refused(415, "the body must be the image file itself, not a form: curl --data-binary @FILE")
        async with self._room(model):
            content = await self._body(request)
            try:
                pixels = await anyio.to_thread.run_sync(model.reader.read, content, limiter=self.decoders)
            except InvalidData as error:
                raise Refused(415, str(error)) from None
            except TorchswatError as error:
                raise Refused(500, str(error)) from None
        try:
            probabilities = await model.batcher.probabilities(pixels)
        except Full:
            raise Refused(503, _FULL) from None
        guesses = [guess.to_json() for guess in best(model.network, probabilities, int(top))]
        milliseconds = 1000 * (time.perf_counter() - begun)
        return JSONResponse({"guesses": guesses, "milliseconds": milliseconds}, headers=_HEADERS)

    async def _infer(self, request: Request, model: _Model) -> Response:
        async with self._room(model):
            content = await self._body(request)
            length = request.headers.get(kserve.LENGTH_HEADER)
            graph = model.network.package.graph
            try:
                asked = await anyio.to_thread.run_sync(kserve.read, content, length, graph, self.limits.batch)
            except kserve.Mistake as error:
                raise Refused(400, str(error)) from None
            scores = await model.batcher.scores(asked.images)
        body, headers = kserve.answer(model.name, asked, scores)
        return Response(body, headers={**headers, **_HEADERS})

    @contextlib.asynccontextmanager
    async def _room(self, model: _Model) -> AsyncIterator[None]:
        """Count a request among those that are read, or refuse it."""
        if self.reading + model.batcher.queued >= self.limits.room:
            raise Refused(503, _FULL)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    async def _body(self, request: Request) -> bytes:
        """Read a body and keep no more than the limit.

        Several times as much is read and forgotten: most clients read an answer only when they have sent their body.
        """
        too_long = Refused(413, f"a body may have {self.limits.bytes} bytes at most")
        most = _DISCARDED * self.limits.bytes
        claimed = request.headers.get("content-length", "")
        if claimed.isdecimal() and int(claimed[:18]) > (
            self.limits.bytes if "expect" in request.headers else most
        ):
            raise too_long
        content, arrived = bytearray(), 0
        try:
            with anyio.fail_after(self.limits.seconds):
                async for part in request.stream():
                    arrived += len(part)
                    if arrived > most:
                        raise too_long
                    if arrived <= self.limits.bytes:
                        content += part
        except TimeoutError:
            raise Refused(408, f"the body took more than {self.limits.seconds} s to arrive") from None
        if arrived > self.limits.bytes:
            raise too_long
        if not content:
            raise Refused(400, "the body of the request is empty")
        return bytes(content)

    # ---- what runs here

    async def about(self, request: Request) -> Response:
        """Return the protocol's metadata of the service."""
        return JSONResponse(kserve.server(), headers=_HEADERS)

    async def ready(self, request: Request) -> Response:
        """Return that the service, or a model, is ready: what is loaded always is."""
        name = request.path_params.get("name")
        if name is None or name in self.models:
            return JSONResponse({"ready": True}, headers=_HEADERS)
        return JSONResponse({"error": f"there is no model {name!r:.60}"}, 404, _HEADERS)

    async def metadata(self, request: Request) -> Response:
        """Return the protocol's metadata of a model."""
        try:
            model = self._model(request.path_params["name"])
        except Refused as error:
            return JSONResponse({"error": error.words}, error.status, _HEADERS)
        graph = model.network.package.graph
        return JSONResponse(kserve.metadata(model.name, graph, model.outputs), headers=_HEADERS)

    async def health(self, request: Request) -> Response:
        """Return what runs here; of several models the first stands at the top."""
        models = {name: self._described(model) for name, model in self.models.items()}
        about = {
            "status": "ok",
            "version": __version__,
            "engine": info(),
            **next(iter(models.values())),
            "models": models,
            "limits": vars(self.limits),
            "uptime_seconds": round(time.time() - self.started, 1),
        }
        return JSONResponse(about, headers=_HEADERS)

    @staticmethod
    def _described(model: _Model) -> dict[str, Any]:
        package = model.network.package
        return {
            "input_shape": list(package.graph.input_shape),
            "classes": len(package.about.classes) or None,
            "provenance": dict(package.about.provenance),
        }

    async def scrape(self, request: Request) -> Response:
        """Return the metrics."""
        kind = "text/plain; version=0.0.4"
        return Response(self.metrics.text(), media_type=kind, headers=_HEADERS)

    @staticmethod
    def page(name: str, kind: str) -> Callable[[Request], Response]:
        """Return what answers with a file of the page."""
        text = resources.files("torchswat.deploy").joinpath("page").joinpath(name).read_text(encoding="utf-8")
        return lambda request: Response(text, media_type=kind, headers=_HEADERS)


_BACKLOG = 32
"""Connections that the system queues, and that are accepted in one turn: more could exceed the limit on open files."""


class _FewFiles:
    """An event loop's handler that logs a lack of open files in one line a second; asyncio accepts again by itself."""

    def __init__(self) -> None:
        self.said = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif loop.time() > self.said + 1:
            self.said = loop.time()
            logging.getLogger(__name__).warning("No connection is accepted for a second: %s.", error.strerror)


def serve(
    networks: Mapping[str, Network], host: str, port: int, limits: Limits, ready: Callable[[str], object]
) -> None:
    """Serve until a signal ends it; `ready` is called with the address once it is bound (port 0: any free one)."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(_FewFiles())
            await super().startup(sockets)

    server = Server(
        uvicorn.Config(
            make_service(networks, limits),
            http=bounded(limits.header_seconds, most_connections(limits.connections)),
            log_level="error",  # a client that sends no HTTP is no news
            backlog=_BACKLOG,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=max(1, round(limits.ending_seconds)),
            access_log=False,
        )
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off: else a kept connection waits 40 ms a request.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port))
            taken.listen(_BACKLOG)
        except OSError as error:
            raise InvalidValue(
                f"cannot listen on {host}, port {port}: {error.strerror or error}. Name others by --host and "
                "--port; port 0 takes any that is free."
            ) from None
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{taken.getsockname()[1]}/")
        server.run(sockets=[taken])
