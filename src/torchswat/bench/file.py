"""A file on this machine: each of its layers, what bounds it, and other runtimes with the same network, dense.

The others get the network as ONNX with the zeros among its weights, for the sizes that are timed. Contestants
take turns: each runs once before it is timed, another begins each round, and no threads of others spin meanwhile.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchswat.bench.peak import peak_bandwidth, peak_gflops
from torchswat.bench.race import Tick, faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.errors import InvalidValue, UnknownName
from torchswat.runtime.graph import Graph, Node
from torchswat.runtime.onnx_writer import to_onnx
from torchswat.runtime.operations.rows import TYPES, Shape, count
from torchswat.runtime.package import Package
from torchswat.runtime.session import Session, Sessions
from torchswat.training.run_folder import version_of

Array = np.ndarray
Arrays = list[np.ndarray]
Run = Callable[[], list[np.ndarray]]

BATCH_SIZES = (1, 16)
PEERS = ("onnxruntime", "openvino")
OVERHEAD_BELOW = 0.1  # share of a layer's time that operations and bytes explain; with less it is overhead


def bench_file(
    path: Path,
    batch_sizes: Sequence[int] = (),
    repeats: int = 25,
    peers: Sequence[str] = PEERS,
    *,
    streams: int = 1,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time the network in a file, by layer and against `peers`, each call on as many threads as torch has.

    Parameters
    ----------
    path : Path
        A file that `torchswat.save` wrote.
    batch_sizes : sequence of int, optional
        Default: `BATCH_SIZES`, or the one that the network takes.
    repeats : int, default 25
        Timed rounds; each runs every contestant twice.
    peers : sequence of str
        Among `PEERS`. One that is not installed, or refuses the network, is left out, and that is said.
    streams : int, default 1
        Calls that run at once. Other runtimes have a session for each.
    seed : int, default 0
        Of the inputs.
    tick : callable
        Called ``len(batch_sizes) * (repeats + 1)`` times.

    Returns
    -------
    Record
        A row for each batch size and contestant; ours has the layers and what the machine can do.

    Raises
    ------
    UnknownName
        For a peer that is not in the list.
    MissingData, InvalidData
        There is no such file, or it is damaged.
    InvalidValue
        The network takes another number of images.
    """
    check_peers(peers)
    package = Package.read(path)
    sizes = batches(package.graph, batch_sizes)
    threads = torch.get_num_threads()
    facts = circumstances(seed, repeats)
    facts |= {
        "file": path.name,
        "streams": streams,
        "peers": {name: version_of(name) for name in ("onnx", *PEERS)},
    }
    facts |= {"peak_gflops": peak_gflops(), "peak_bandwidth": peak_bandwidth()}
    network, rows, remarks = Sessions(package.graph, package.tensors), [], []
    draw = np.random.default_rng(seed)
    for size in sizes:
        arrays = [_input(draw, each.dtype, shape) for each, shape in _shapes(package.graph, size)]
        with tempfile.TemporaryDirectory() as folder:
            others, absent = _others(package, arrays, peers, threads, streams, Path(folder) / "network.onnx")
            remarks += [remark for remark in absent if remark not in remarks]
            ours = partial(network.run, arrays, threads)
            contestants = {"torchswat": _at_once([ours] * streams), **others}
            samples = race(contestants, repeats, tick, in_turns=True)
            images = len(arrays[0]) if arrays[0].ndim else 1
            rows += _rows(size, samples, contestants, images * streams)
        (row,) = (row for row in rows if row["how"] == "torchswat" and row["batch_size"] == size)
        row["layers"] = _layers(network, arrays, threads, repeats, facts)
    return Record("file", facts, rows, [], remarks)


def check_peers(peers: Sequence[str]) -> None:
    """Raise `UnknownName` for a runtime that is not in `PEERS`."""
    for name in peers:
        if name not in PEERS:
            raise UnknownName.of("runtime", name, PEERS)


def batches(graph: Graph, wanted: Sequence[int] = ()) -> list[int]:
    """Return the batch sizes to time: `wanted`, or those by default, where the network lets them.

    Raises
    ------
    InvalidValue
        It takes one batch size, which is another.
    """
    if any(each.is_batch for each in graph.inputs):
        return list(dict.fromkeys(wanted or BATCH_SIZES))
    fixed = graph.inputs[0].example[0] if graph.inputs[0].example else 1
    for size in wanted:
        if size != fixed:
            raise InvalidValue(f"the batch size is {size}; this network takes {fixed} alone")
    return [fixed]


def _shapes(graph: Graph, size: int) -> list[tuple[Any, Shape]]:
    return [(each, (size, *each.example[1:]) if each.is_batch else each.example) for each in graph.inputs]


def _input(draw: np.random.Generator, dtype: str, shape: Shape) -> Array:
    """Return random numbers; of whole ones 0, which is an index that every table has."""
    if dtype == "float32":
        return draw.standard_normal(shape, np.float32)
    return np.zeros(shape, TYPES[dtype])


def _at_once(runs: Sequence[Run]) -> Run:
    """Return what makes all calls at once, each in a thread, and returns the first answer."""
    if len(runs) == 1:
        return runs[0]
    pool = ThreadPoolExecutor(len(runs))
    return lambda: list(pool.map(lambda run: run(), runs))[0]  # noqa: RUF015 (all of them are awaited)


def _rows(size: int, samples: dict[str, list[float]], contestants: dict[str, Run], images: int) -> list[Row]:
    others = {name: times for name, times in samples.items() if name != "torchswat"}
    best = median(others[faster(others)]) if others else None
    answers = contestants["torchswat"]()
    return [
        {
            "batch_size": size,
            "how": name,
            "ms": median(times),
            "spread": spread(times),
            "ms_95": float(np.percentile(times, 95)),
            "per_second": 1000 * images / median(times),
            "speed_up": best / median(times) if best is not None and name == "torchswat" else None,
            "gap": None if name == "torchswat" else _gap(answers, contestants[name]()),
            "samples": {name: times},
        }
        for name, times in samples.items()
    ]


def _gap(ours: Arrays, theirs: Arrays) -> float:
    """Return by how much outputs differ at most, as a share of the largest."""
    gaps = [
        float(np.abs(a.astype(float) - b.astype(float)).max(initial=0))
        / max(1e-30, float(np.abs(b.astype(float)).max(initial=0)))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return max(gaps)


# ---- other runtimes ----------------------------------------------------------------------------------------


def _others(
    package: Package, arrays: Arrays, peers: Sequence[str], threads: int, streams: int, path: Path
) -> tuple[dict[str, Run], list[str]]:
    """Return the contestants that are there and take the network, and why the others are left out."""
    found: dict[str, Run] = {}
    remarks = []
    for peer in peers:
        missing = [name for name in ("onnx", peer) if importlib.util.find_spec(name) is None]
        if missing:
            remarks.append(f"{peer} is left out: {', '.join(missing)} is not installed")
            continue
        try:
            if not path.exists():
                path.write_bytes(to_onnx(package, [x.shape for x in arrays]))
            feeds = {each.name: x for each, x in zip(package.graph.inputs, arrays, strict=True)}
            run = _at_once([_MAKERS[peer](path, feeds, threads) for _ in range(streams)])
            run()
        except Exception as error:  # of a foreign runtime: no base class is theirs alone
            remarks.append(f"{peer} is left out: {str(error)[:200]}")
        else:
            found[peer] = run
    return found, remarks


def _onnxruntime(path: Path, feeds: dict[str, Array], threads: int) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def _openvino(path: Path, feeds: dict[str, Array], threads: int) -> Run:
    openvino = importlib.import_module("openvino")  # not among the extras: large
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: list(request.infer(feeds).values())


_MAKERS: dict[str, Callable[[Path, dict[str, Array], int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

# ---- layers ------------------------------------------------------------------------------------------------


def _layers(network: Sessions, arrays: Arrays, threads: int, repeats: int, facts: Row) -> list[Row]:
    """Return a row for each layer, as it runs among the others: its time, its work, and what bounds it."""
    runs: list[list[tuple[Session, Node, float]]] = []
    for _ in range(repeats + 1):
        runs.append([])
        network.run(arrays, threads, lambda *step: runs[-1].append(step))
    seconds: dict[str, list[float]] = defaultdict(list)
    for steps in runs[1:]:
        spent: dict[str, float] = defaultdict(float)
        for session, node, taken in steps:
            spent[node.name] += taken / (threads if session.threads == 1 else 1)  # images run side by side
        for name, total in spent.items():
            seconds[name].append(total)
    rows: dict[str, Row] = {}
    for session, node, _ in runs[-1]:
        operations, read = work(session, node)
        row = rows.setdefault(
            node.name,
            {
                "layer": node.name,
                "operation": node.operation.removeprefix("Fused"),
                "runs_in": "kernel" if node.name in session.fixed else "numpy",
                "kept": _kept(session, node),
                "ms": 1000 * median(seconds[node.name]),
                "operations": 0,
                "bytes": 0,
            },
        )
        row["operations"] += operations
        row["bytes"] += read
    for row in rows.values():
        row |= _bound(row, facts)
    return list(rows.values())


_MOVES_NOTHING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split"}
_PRODUCTS = {"FusedConv", "FusedLinear", "Conv", "ConvTranspose", "Gemm", "MatMul"}


def _kept(session: Session, node: Node) -> float | None:
    """Return the share of the weight that is not zero; None where there is no constant weight."""
    weight = session.network.weights.get(node.inputs[1]) if node.inputs[1:] else None
    if node.operation not in _PRODUCTS or weight is None:
        return None
    return float(np.count_nonzero(weight)) / max(1, weight.size)


def work(session: Session, node: Node) -> tuple[int, int]:
    """Return the operations (two for each multiply-add of a kept weight) and the bytes read and written of a node."""
    values, weights = session.values, session.network.weights
    if node.operation in _MOVES_NOTHING:
        return 0, 0
    made = values[node.name].shape
    names = [name for name in (*node.inputs, *node.outputs) if name and name in values]
    moved = sum(values[name].dtype.itemsize * count(values[name].shape) for name in names)
    weight = weights.get(node.inputs[1]) if node.operation in _PRODUCTS else None
    if node.operation == "Attention":
        q, k, v = (values[name].shape for name in node.inputs[:3])
        return 2 * count(q[:-1]) * k[-2] * (q[-1] + v[-1]), moved
    if weight is None:
        inner = values[node.inputs[0]].shape[-1] if node.operation == "MatMul" else 0
        return 2 * count(made) * inner, moved
    in_kernel = node.name in session.fixed
    kept = int(np.count_nonzero(weight)) if in_kernel else weight.size
    if in_kernel:
        moved += 6 * kept - 4 * weight.size  # a value and an offset of 16 bits
    # Each weight meets every position: of the result, or of the input where the convolution is transposed.
    seen = values[node.inputs[0]].shape if node.settings.get("transposed") else made
    positions = count(made[:-1]) if node.operation == "FusedLinear" else count((seen[0], *seen[2:]))
    return 2 * kept * positions, moved


def _bound(row: Row, facts: Row) -> Row:
    """Return the least time that the machine needs for a layer, and for what: operations, bytes or neither."""
    rates = facts["peak_gflops"]
    rate = (
        None if rates is None else rates["first_level_cache" if row["runs_in"] == "kernel" else "registers"]
    )
    arithmetic = 0.0 if rate is None else row["operations"] / rate / 1e6
    widths = facts["peak_bandwidth"]
    width = next((widths[size] for size in sorted(widths) if row["bytes"] <= size), widths[max(widths)])
    memory = row["bytes"] / width / 1e6
    least = max(arithmetic, memory)
    by = "operations" if arithmetic >= memory else "bytes"
    return {"bound_ms": least, "bound": by if least >= OVERHEAD_BELOW * row["ms"] else "overhead"}
