"""A graph on the compiled engine: every step and every address is fixed before the first batch.

All results are in the CHWN layout, in one block of memory that is planned once for a number of
images. A step is a call with all its arguments; a session is a list of them and its own block, so that
several Python threads run side by side, each with a session out of the pool.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from torchswat.engine.loader import native
from torchswat.runtime import lists
from torchswat.runtime.arena import place
from torchswat.runtime.graph import INPUT, Graph, Node, Shape

Step = Callable[[], object]

ROWS_BELOW = 16  # images: with fewer, lanes are positions of a row and not samples
MOST_PICTURES = 256  # that run at once
MOST_SIZES = 8  # numbers of images that stay prepared
MOST_FLOATS = 2**28  # of one result


class Sessions:
    """The sessions of one network, made when they are needed; safe to use from several threads."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        self._graph, self._tensors = graph, tensors
        shapes = graph.shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        self._shapes = shapes
        self._most = max(1, min(MOST_PICTURES, MOST_FLOATS // max(map(_floats, shapes.values()))))
        self._lock, self._packing = threading.Lock(), threading.Lock()
        self._idle: OrderedDict[tuple, list[_Session]] = OrderedDict()
        self._lists: WeakValueDictionary[tuple, lists.Lists] = WeakValueDictionary()  # sessions hold them
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __reduce__(self) -> tuple[type[Sessions], tuple]:
        """A copy, or a pickle, is of the network alone and prepares its own sessions."""
        return Sessions, (self._graph, self._tensors)

    def run(self, x: Tensor) -> Tensor:
        """Return the outputs for images `x`, float32 (N, C, H, W) with N of at least 1."""
        if len(x) > self._most:
            return torch.cat([self.run(part) for part in x.split(self._most)])
        threads = torch.get_num_threads()
        if threads == 1 or not threads <= len(x) < ROWS_BELOW:
            return self._run(x, threads)
        # Each thread takes whole images: nothing is waited for, and an image's results stay in its cache.
        alone = len(x) - len(x) % threads
        parts = list(self._workers(threads).map(partial(self._run, threads=1), x[:alone].split(1)))
        return torch.cat(parts if alone == len(x) else [*parts, self._run(x[alone:], threads)])

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if threads not in self._pools:
                self._pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="torchswat")
            return self._pools[threads]

    def _run(self, x: Tensor, threads: int) -> Tensor:
        """Run all of `x` at once, with the compiled kernels on so many threads."""
        module = native()
        assert module is not None
        key = len(x), threads, module.isa()
        with self._lock:
            pool = self._idle.setdefault(key, [])
            session = pool.pop() if pool else None
        if session is None:
            with torch.inference_mode(False):  # its memory serves callers in that mode and others
                session = _Session(
                    self._graph, self._shapes, self._tensors, len(x), threads, module, self._lists_of
                )
        result = session.run(x)
        with self._lock:
            self._idle.setdefault(key, []).append(session)
            self._idle.move_to_end(key)
            while len(self._idle) > MOST_SIZES:
                self._idle.popitem(last=False)
        return result

    def _lists_of(self, key: tuple, make: Callable[[], lists.Lists]) -> lists.Lists:
        with self._packing:  # threads that start together share one packing
            found = self._lists.get(key)
            if found is None:
                found = self._lists[key] = make()
        return found


def _floats(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


class _Session:
    """Steps and memory for one number of images; used by one thread at a time."""

    def __init__(
        self,
        graph: Graph,
        shapes: Mapping[str, Shape],
        tensors: Mapping[str, Tensor],
        images: int,
        threads: int,
        module: ModuleType,
        lists_of: Callable[[tuple, Callable[[], lists.Lists]], lists.Lists],
    ) -> None:
        self.n, self.native, self.shapes, self.tensors, self.lists_of = (
            images,
            module,
            shapes,
            tensors,
            lists_of,
        )
        self.threads = threads
        self.held: list[Any] = []  # what steps have the addresses of
        self.views = self._plan(graph)
        self.workspace = torch.empty(0)
        self.wanted = 0
        makers = [_STEPS[node.operation](self, node) for node in graph.nodes]
        self.workspace = torch.empty(self.wanted)
        self.steps: list[Step] = [step for maker in makers for step in maker()]
        self.output = self.views[graph.nodes[-1].name]

    def run(self, x: Tensor) -> Tensor:
        """Return the outputs for the images `x`."""
        x = x.contiguous()
        first = self.views[INPUT]
        self.native.nchw_to_chwn(x.data_ptr(), x[:1].numel(), first.data_ptr(), *x.shape, self.threads)
        for step in self.steps:
            step()
        return self.output.permute(-1, *range(self.output.dim() - 1)).clone(
            memory_format=torch.contiguous_format
        )

    def _plan(self, graph: Graph) -> dict[str, Tensor]:
        """Return where each result lies: views, (C, H, W, N) or (C, N), of one block of memory."""
        owner: dict[str, str] = {INPUT: INPUT}  # a flattened result is the same memory
        lives = {INPUT: [0, 0]}
        for index, node in enumerate(graph.nodes, start=1):
            for name in node.inputs:
                lives[owner[name]][1] = index
            owner[node.name] = owner[node.inputs[0]] if node.operation == "flatten" else node.name
            lives.setdefault(owner[node.name], [index, index])
        lives[owner[graph.nodes[-1].name]][1] = len(graph.nodes) + 1
        sizes = [4 * _floats(self.shapes[name]) * self.n for name in lives]
        offsets, total = place(sizes, [(first, last) for first, last in lives.values()])
        block = torch.empty(total // 4)
        self.held.append(block)
        starts = dict(zip(lives, offsets, strict=True))
        return {
            name: block[starts[mine] // 4 :][: _floats(self.shapes[name]) * self.n].view(
                *self.shapes[name], self.n
            )
            for name, mine in owner.items()
        }

    def lend(self, floats: int) -> None:
        """Note that a step needs a workspace of that size."""
        self.wanted = max(self.wanted, floats)

    def hold(self, tensor: Tensor) -> int:
        """Return the address of a tensor, and keep it alive."""
        self.held.append(tensor)
        return tensor.data_ptr()


Maker = Callable[[], list[Step]]
"""Makes the steps of a node once the workspace is there."""


def _convolution(session: _Session, node: Node) -> Maker:
    stride = node.settings["stride_h"], node.settings["stride_w"]
    padding = node.settings["padding_h"], node.settings["padding_w"]
    source = session.shapes[node.inputs[0]]
    return _convolve(session, node, source, session.shapes[node.name], stride, padding)


def _linear(session: _Session, node: Node) -> Maker:
    """A convolution of an image of one pixel."""
    source, result = ((*session.shapes[name], 1, 1) for name in (node.inputs[0], node.name))
    return _convolve(session, node, source, result, (1, 1), (0, 0))


def _convolve(
    session: _Session,
    node: Node,
    source: Shape,
    result: Shape,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Maker:
    """Take the kernel that suits the number of images, and lists of the kept weights in its order."""
    module, n, threads = session.native, session.n, session.threads
    weight, bias = (session.tensors[f"{node.name}.{part}"] for part in ("weight", "bias"))
    weight = weight.view(*weight.shape, *(1,) * (4 - weight.dim()))
    shape = module.ConvShape(n, *source, weight.shape[0], *weight.shape[2:], *stride, *padding, *result[1:])
    by_rows = n < ROWS_BELOW
    kernel = module.conv_rows if by_rows else module.conv_forward_fused
    make = partial(lists.for_rows if by_rows else lists.for_samples, module, shape, weight)
    packed = session.lists_of((node.name, module.isa(), n if by_rows else 0), make)
    session.held.append(packed)
    session.lend((module.rows_workspace if by_rows else module.conv_workspace)(shape, threads))
    read, *added = (session.views[name].data_ptr() for name in node.inputs)
    relu = bool(node.settings["relu"])
    arguments = (
        read,
        *packed.addresses(),
        session.hold(bias),
        added[0] if added else 0,
        relu,
        session.views[node.name].data_ptr(),
    )
    return lambda: [partial(kernel, shape, *arguments, session.workspace.data_ptr(), threads)]


def _affine(session: _Session, node: Node) -> Maker:
    x, y = session.views[node.inputs[0]], session.views[node.name]
    scale, shift = (session.hold(session.tensors[f"{node.name}.{part}"]) for part in ("scale", "shift"))
    channels = len(x)
    lengths = channels, x.numel() // channels
    relu = bool(node.settings["relu"])
    kernel, threads = session.native.affine_forward, session.threads
    return lambda: [partial(kernel, x.data_ptr(), *lengths, scale, shift, 0, relu, y.data_ptr(), 0, threads)]


def _pool(session: _Session, node: Node) -> Maker:
    x, y = session.views[node.inputs[0]], session.views[node.name]
    window = (node.settings[part] for part in ("kernel", "stride", "padding"))
    average = node.operation == "average_pool"
    arguments = x.data_ptr(), *x.shape, *window, *y.shape[1:3], average, y.data_ptr(), session.threads
    return lambda: [partial(session.native.pool_rows, *arguments)]


def _adaptive(session: _Session, node: Node) -> Maker:
    x, y = session.views[node.inputs[0]], session.views[node.name]
    if y.shape[1:3] == (1, 1):
        sizes = *x.shape[:3], session.n, *x.shape[1:3]  # the window is the map
        kernel = session.native.average_forward
        return lambda: [partial(kernel, x.data_ptr(), *sizes, y.data_ptr(), session.threads)]
    images = x.permute(3, 0, 1, 2)
    return lambda: [lambda: y.permute(3, 0, 1, 2).copy_(F.adaptive_avg_pool2d(images, y.shape[1]))]


def _add(session: _Session, node: Node) -> Maker:
    a, b = (session.views[name] for name in node.inputs)
    y = session.views[node.name]
    steps: list[Step] = [partial(torch.add, a, b, out=y)]
    return lambda: steps + ([partial(y.clamp_min_, 0)] if node.settings["relu"] else [])


def _relu(session: _Session, node: Node) -> Maker:
    return lambda: [partial(torch.clamp_min, session.views[node.inputs[0]], 0, out=session.views[node.name])]


def _concatenate(session: _Session, node: Node) -> Maker:
    sources = [session.views[name] for name in node.inputs]
    parts = session.views[node.name].split([len(source) for source in sources])
    return lambda: [partial(part.copy_, source) for part, source in zip(parts, sources, strict=True)]


def _subsample(session: _Session, node: Node) -> Maker:
    x, y, stride = session.views[node.inputs[0]], session.views[node.name], node.settings["stride"]
    seen = x[:, ::stride, ::stride]
    return lambda: [partial(y[: len(x)].copy_, seen), y[len(x) :].zero_]


_STEPS: dict[str, Callable[[_Session, Node], Maker]] = {
    "conv2d": _convolution,
    "linear": _linear,
    "affine": _affine,
    "add": _add,
    "relu": _relu,
    "max_pool": _pool,
    "average_pool": _pool,
    "adaptive_average_pool": _adaptive,
    "concatenate": _concatenate,
    "subsample": _subsample,
    "flatten": lambda session, node: list,
}
