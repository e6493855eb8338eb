"""Sessions: the steps of a graph for inputs of certain sizes, and the memory of the results of kernels.

Results of the compiled kernels are in the CHWN layout, in one block of memory that is planned once; a step is
a call with all its arguments. What runs in numpy allocates its own results, which are freed after their last
use. A session is used by one Python thread at a time; several run side by side, each out of the pool.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from torchswat.engine.compiled import native
from torchswat.errors import InvalidData, InvalidValue
from torchswat.runtime import lists
from torchswat.runtime.arena import place
from torchswat.runtime.fuse import TABLE, fuse
from torchswat.runtime.graph import Graph, Input, Node
from torchswat.runtime.infer import Values, compute, constant, infer
from torchswat.runtime.memory import aligned, empty, laid
from torchswat.runtime.operations.rows import FLOAT, Shape, count
from torchswat.runtime.quantized_steps import STEPS
from torchswat.runtime.steps import ROWS_BELOW, Slots, Step

Array = np.ndarray
Key = tuple[Any, ...]
Watch = Callable[["Session", Node, float], object]
"""Called after every step of a run with the session, the node and the seconds; from several threads at once."""

MOST_IMAGES = 256  # that run at once
MOST_SIZES = 8  # shapes of inputs that stay prepared
MOST_FLOATS = 2**28  # of one result
_VIEWS = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"}


class Sessions:
    """The sessions of one network, made when they are needed; safe to use from several threads."""

    def __init__(self, graph: Graph, tensors: dict[str, Array]) -> None:
        self._graph, self._tensors = graph, tensors
        self.fused: Graph
        self.fused, weights = fuse(graph, tensors)
        self.weights: dict[str, Array] = {
            name: aligned(w) if w.dtype == FLOAT else w for name, w in weights.items()
        }
        self.constants: Values = {name: constant(tensor) for name, tensor in self.weights.items()}
        self._most = self._images_at_once()
        self._lock, self._packing = threading.Lock(), threading.Lock()
        self._idle: OrderedDict[Key, list[Session]] = OrderedDict()
        self._lists: WeakValueDictionary[Key, lists.Lists] = WeakValueDictionary()  # sessions hold them
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __reduce__(self) -> tuple[type[Sessions], Key]:
        """Copy and pickle the network alone; the copy prepares its own sessions."""
        return Sessions, (self._graph, self._tensors)

    def _images_at_once(self) -> int:
        inputs = self._graph.inputs
        if not self._graph.rows or not inputs or not all(each.is_batch for each in inputs):
            return 0
        values = infer(self.fused, self.constants, self._graph.examples, TABLE)
        images = self._graph.inputs[0].example[0]
        largest = max(count(value.shape) for value in values.values()) / images
        return max(1, min(MOST_IMAGES, int(MOST_FLOATS // largest)))

    def run(self, inputs: Sequence[Array], threads: int, watch: Watch | None = None) -> list[Array]:
        """Return the outputs for inputs that passed the graph's `check`."""
        images = len(inputs[0]) if inputs and inputs[0].ndim else 0
        if not self._most or not images:
            return self._run(inputs, threads, watch)
        if images > self._most:
            cuts = range(0, images, self._most)
            parts = [self.run([x[at : at + self._most] for x in inputs], threads, watch) for at in cuts]
            return _joined(parts)
        if threads == 1 or not threads <= images < ROWS_BELOW or native() is None:
            return self._run(inputs, threads, watch)
        # Each thread takes whole images: no step needs the others, and an image's results stay in its cache.
        alone = images - images % threads
        each = [[x[at : at + 1] for x in inputs] for at in range(alone)]
        parts = list(self._workers(threads).map(partial(self._run, threads=1, watch=watch), each))
        if alone < images:
            parts.append(self._run([x[alone:] for x in inputs], threads, watch))
        return _joined(parts)

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if threads not in self._pools:
                self._pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="torchswat")
            return self._pools[threads]

    def _run(self, inputs: Sequence[Array], threads: int, watch: Watch | None) -> list[Array]:
        """Run everything at once, with the compiled kernels on so many threads."""
        module = native()
        shapes = tuple(x.shape for x in inputs)
        key = shapes, threads, None if module is None else module.isa()
        with self._lock:
            pool = self._idle.setdefault(key, [])
            session = pool.pop() if pool else None
        if session is None:
            session = Session(self, self._graph.check(shapes), threads, module)
        result = session.run(inputs, watch)
        with self._lock:
            self._idle.setdefault(key, []).append(session)
            self._idle.move_to_end(key)
            while len(self._idle) > MOST_SIZES:
                self._idle.popitem(last=False)
        return result

    def lists_of(self, key: Key, make: Callable[[], lists.Lists]) -> lists.Lists:
        """Return packed weights, which threads that start together share."""
        with self._packing:
            found = self._lists.get(key)
            if found is None:
                found = self._lists[key] = make()
        return found


def _joined(parts: list[list[Array]]) -> list[Array]:
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


class Session:
    """Steps and memory for one shape of each input; used by one thread at a time.

    Attributes
    ----------
    values : dict of str to Value
        Shapes, types and known sizes.
    fixed : dict of str to ndarray
        Results of kernels, and views of them: (N, C, ...) by index, as their step says in the block.
    lies : dict of str to ndarray
        The same while memory is planned: stand-ins whose strides alone are of use.
    """

    def __init__(
        self, network: Sessions, shapes: dict[str, Shape], threads: int, module: ModuleType | None
    ) -> None:
        self.network: Sessions = network
        self.threads: int = threads
        graph = network.fused
        try:
            self.values: Values = infer(graph, network.constants, shapes, TABLE)
        except InvalidData as error:
            raise InvalidValue(f"inputs of {list(shapes.values())} do not fit: {error}") from None
        self.is_empty: bool = all(not count(self.values[name].shape) for name in graph.outputs)
        self.native: Any = module
        self.has_kernels: bool = module is not None and all(map(count, shapes.values()))
        self.nodes: list[Node] = self._needed(graph)
        self.lies: dict[str, Array] = {}
        self.fixed: dict[str, Array] = self._plan(graph)
        self.lies.clear()
        self.nodes = [each for each in self.nodes if not self._is_view(each, self.fixed)]
        self.workspace: Array = empty(0)
        self.wanted: int = 0
        self.held: list[lists.Lists] = []  # what steps have the addresses of
        self.staged: list[Array] = []  # likewise: constants in another order
        self.slots: Slots = {name: v.known for name, v in self.values.items() if v.known is not None}
        self.slots |= {**network.weights, **self.fixed}
        self.inputs: tuple[Input, ...] = graph.inputs
        self.outputs: tuple[str, ...] = graph.outputs
        makers = [self._maker(each) for each in self.nodes]
        self.workspace = empty(self.wanted)
        self.steps: list[tuple[Step, tuple[str, ...]]] = [
            (maker(), gone) for maker, gone in zip(makers, self._last_uses(), strict=True)
        ]

    def run(self, inputs: Sequence[Array], watch: Watch | None = None) -> list[Array]:
        """Return the outputs, in memory of their own; `watch` is called after every step."""
        if self.is_empty:
            return [np.empty(self.values[name].shape, self.values[name].dtype) for name in self.outputs]
        slots = dict(self.slots)
        slots |= {each.name: x for each, x in zip(self.inputs, inputs, strict=True)}
        with np.errstate(all="ignore"):
            for step, gone in self.steps if watch is None else self._watched(watch):
                step(slots)
                for name in gone:
                    del slots[name]
        return [np.array(slots[name], order="C") for name in self.outputs]

    def _watched(self, watch: Watch) -> Iterator[tuple[Step, tuple[str, ...]]]:
        """Yield the steps, each timed and reported to `watch`."""
        for node, (step, gone) in zip(self.nodes, self.steps, strict=True):

            def timed(slots: Slots, node: Node = node, step: Step = step) -> None:
                start = time.perf_counter()
                step(slots)
                watch(self, node, time.perf_counter() - start)

            yield timed, gone

    def lend(self, floats: int) -> None:
        """Note that a step needs a workspace of that size."""
        self.wanted = max(self.wanted, floats)

    def _maker(self, node: Node) -> Callable[[], Step]:
        if node.name in self.fixed:
            return STEPS[node.operation].make(self, node)
        return lambda: self._in_numpy(node)

    def _in_numpy(self, node: Node) -> Step:
        row, inputs, outputs = TABLE[node.operation], node.inputs, node.outputs

        def step(slots: Slots) -> None:
            try:
                made = compute(node, row, [slots[name] if name else None for name in inputs])
            except (ValueError, TypeError, IndexError) as error:
                raise InvalidValue(f"node {node.name!r:.60} ({node.operation}): {error}") from None
            slots |= zip(outputs, made, strict=False)

        return step

    def _last_uses(self) -> list[tuple[str, ...]]:
        """Return, for each step, the names whose results nothing reads any more."""
        kept = {*self.slots, *self.outputs}
        gone: list[tuple[str, ...]] = []
        for node in reversed(self.nodes):
            names = {name for name in (*node.inputs, *node.outputs) if name} - kept
            kept |= names
            gone.append(tuple(names))
        return gone[::-1]

    def _needed(self, graph: Graph) -> list[Node]:
        """Return the nodes that something reads whose values are not known."""
        wanted, nodes = set(graph.outputs), list[Node]()
        for each in reversed(graph.nodes):
            if any(name in wanted and self.values[name].known is None for name in each.outputs):
                nodes.append(each)
                wanted.update(each.inputs)
        return nodes[::-1]

    def _plan(self, graph: Graph) -> dict[str, Array]:
        """Return where each result of a kernel lies: arrays in one block of memory."""
        lives: dict[str, list[int]] = {}
        orders: dict[str, tuple[int, ...]] = {}
        owner: dict[str, str] = {}  # of what may lie in the memory of a kernel's result
        for index, node in enumerate(self.nodes, start=1):
            for name in node.inputs:
                if name in owner:
                    lives[owner[name]][1] = index
            kernel = STEPS.get(node.operation) if self.has_kernels else None
            if kernel is not None and kernel.suits(self, node, owner):
                owner[node.name], lives[node.name] = node.name, [index, index]
                orders[node.name], shape = kernel.order(self, node), self.values[node.name].shape
                self.lies[node.name] = laid(
                    np.empty(count(shape), self.values[node.name].dtype), shape, orders[node.name]
                )
                continue
            self._is_view(node, self.lies)
            if TABLE[node.operation].is_view and node.inputs[0] in owner:
                owner |= dict.fromkeys(node.outputs, owner[node.inputs[0]])
        for name in graph.outputs:
            if name in owner:
                lives[owner[name]][1] = len(self.nodes) + 1
        shapes = {name: self.values[name].shape for name in lives}
        sizes = [self.values[name].dtype.itemsize * count(shape) for name, shape in shapes.items()]
        offsets, total = place(sizes, [(first, last) for first, last in lives.values()])
        as_bytes = empty(total, np.uint8)
        found: dict[str, Array] = {}
        for (name, shape), at, size in zip(shapes.items(), offsets, sizes, strict=True):
            row = as_bytes[at : at + size].view(self.values[name].dtype)
            found[name] = laid(row, shape, orders[name])
        return found

    def _is_view(self, node: Node, fixed: dict[str, Array]) -> bool:
        """Return whether the results of a node are other views of what is in `fixed`; they then are too."""
        if node.operation not in _VIEWS or node.inputs[0] not in fixed:
            return False
        source, others = fixed[node.inputs[0]], [name and self.values[name].known for name in node.inputs[1:]]
        if any(each is None for each in others):
            return False
        arrays = [source, *(each if isinstance(each, np.ndarray) else None for each in others)]
        made = compute(node, TABLE[node.operation], arrays)
        if not all(np.may_share_memory(each, source) for each in made if each.size):
            return False
        fixed |= zip(node.outputs, made, strict=False)
        return True
