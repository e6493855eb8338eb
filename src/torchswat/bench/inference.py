"""Whole networks at inference: this runtime at several sparsities against dense ones of others, in one race.

The peers run the same network, pruned, each at its best settings: PyTorch in channels_last, as it is and
compiled; ONNX Runtime; OpenVINO held to float32. A peer that is not installed is left out, and that is said.
Speed-up is over the fastest of them. What is timed is a call with a batch of normalised images in memory.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchswat import models
from torchswat.bench.race import Tick, faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.convert import sparsify_
from torchswat.deploy.onnx import export_onnx
from torchswat.engine import info
from torchswat.errors import UnknownName
from torchswat.runtime.network import load
from torchswat.runtime.saving import save
from torchswat.runtime.trace import pruned
from torchswat.selection import check_sparsity
from torchswat.training.run_folder import version_of

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Case:
    """A network and a number of images, with the speed-ups that the runtime was built for, by sparsity."""

    network: str
    form: str
    batch_size: int
    targets: dict[float, float]


_SMALL = {0.5: 1.3, 0.8: 2.3, 0.9: 3.5}

CASES: dict[str, Case] = {
    f"{case.network}-{case.batch_size}": case
    for case in (
        Case("resnet18", "cifar", 64, _SMALL),
        Case("vgg16", "cifar", 64, _SMALL),
        Case("resnet18", "cifar", 1, {0.8: 1.8}),
        Case("vgg16", "cifar", 1, {0.8: 1.8}),
        Case("resnet50", "imagenet", 8, {0.8: 1.5, 0.9: 2.0}),
        Case("resnet50", "imagenet", 1, {}),
    )
}
"""By name: network and batch size."""

PEERS = ("pytorch", "pytorch compiled", "onnxruntime", "openvino")
_PACKAGES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def bench_inference(
    cases: Sequence[str] = tuple(CASES),
    sparsities: Sequence[float] = SPARSITIES,
    repeats: int = 15,
    peers: Sequence[str] = PEERS,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time `cases` at `sparsities` against `peers`.

    Parameters
    ----------
    cases : sequence of str
        Names in `CASES`.
    sparsities : sequence of float
        In [0, 1).
    repeats : int, default 15
        Timed rounds; each runs every contestant once.
    peers : sequence of str
        Among `PEERS`.
    seed : int, default 0
        Of weights and images.
    tick : callable
        Called ``rounds(cases, repeats)`` times.

    Returns
    -------
    Record

    Raises
    ------
    UnknownName, InvalidValue
        For a case or peer that is not in the list, or a sparsity outside [0, 1).
    """
    check_names(cases, peers)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    installed = {name for packages in _PACKAGES.values() for name in packages}
    situation = circumstances(seed, repeats) | {"peers": {n: version_of(n) for n in sorted(installed)}}
    absent = {peer: missing for peer in peers if (missing := _missing(peer))}
    rows = []
    for name in cases:
        torch.manual_seed(seed)
        rows += _compare(CASES[name], sparsities, [p for p in peers if p not in absent], repeats, tick)
    remarks = [f"{peer} is left out: {missing} is not installed" for peer, missing in absent.items()]
    return Record("inference", situation, rows, [], remarks)


def check_names(cases: Sequence[str], peers: Sequence[str]) -> None:
    """Raise `UnknownName` for a name that is not in `CASES` or `PEERS`."""
    for kind, names, known in (("case to time", cases, CASES), ("peer", peers, PEERS)):
        for name in names:
            if name not in known:
                raise UnknownName.of(kind, name, known)


def rounds(cases: Sequence[str], repeats: int) -> int:
    """Return how often `bench_inference` calls its `tick`."""
    return len(cases) * (repeats + 1)


def _missing(peer: str) -> str:
    return ", ".join(name for name in _PACKAGES.get(peer, ()) if importlib.util.find_spec(name) is None)


def _compare(
    case: Case, sparsities: Sequence[float], peers: Sequence[str], repeats: int, tick: Tick
) -> list[Row]:
    """Race the contestants of one case, and return a row for each."""
    about = models.info(case.network, case.form)
    images = torch.randn(case.batch_size, about.in_channels, about.image_size, about.image_size)
    calls = max(1, 16 // case.batch_size)  # in a row: the contestant before has cooled the caches
    model = models.create(case.network, form=case.form).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network"
        ours: dict[str, Callable[[], object]] = {}
        for sparsity in sparsities:
            sparsify_(model, sparsity=sparsity)
            save(model, file, input_shape=images.shape[1:])
            ours[f"torchswat {sparsity:g}"] = _call(load(file), images)
        dense = pruned(model)
        contestants = {peer: _MAKERS[peer](dense, images, file) for peer in peers} | ours
        samples = race(
            {name: partial(_several, run, calls) for name, run in contestants.items()}, repeats, tick
        )
    samples = {name: [ms / calls for ms in times] for name, times in samples.items()}
    best = median(samples[faster({peer: samples[peer] for peer in peers})]) if peers else None
    targets = case.targets if str(info()["isa"]).startswith("avx512") else {}
    rows = []
    for name, times in samples.items():
        sparsity = None if name in peers else float(name.split()[-1])
        rows.append(
            {
                "network": case.network,
                "batch_size": case.batch_size,
                "how": name if sparsity is None else "torchswat",
                "sparsity": sparsity,
                "ms": median(times),
                "spread": spread(times),
                "images_per_second": 1000 * case.batch_size / median(times),
                "speed_up": None if best is None else best / median(times),
                "target": None if sparsity is None else targets.get(sparsity),
                "limit": None if sparsity is None else 1 / (1 - sparsity),
                "samples": {name: times},
            }
        )
    return rows


def _several(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


# ---- the contestants ---------------------------------------------------------------------------------------


def _call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def _channels_last(model: Any, images: Tensor) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last
    return model.to(memory_format=layout), images.contiguous(memory_format=layout)


def _pytorch(model: nn.Module, images: Tensor, file: Path) -> Callable[[], object]:
    return _call(*_channels_last(model, images))


def _compiled(model: nn.Module, images: Tensor, file: Path) -> Callable[[], object]:
    """Frozen, so that batch norm is folded and weights are laid out once."""
    model, images = _channels_last(model, images)
    compiled: Any = torch.compile(model, options={"freezing": True}, dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _call(compiled, images)()
    return _call(compiled, images)


def _exported(model: nn.Module, images: Tensor, file: Path) -> Path:
    path = file.with_suffix(".onnx")
    if not path.exists():
        with redirect_stdout(io.StringIO()):
            export_onnx(model, path, images.shape[1:])
    return path


def _onnxruntime(model: nn.Module, images: Tensor, file: Path) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = str(_exported(model, images, file))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images.numpy()})


def _openvino(model: nn.Module, images: Tensor, file: Path) -> Callable[[], object]:
    openvino = importlib.import_module("openvino")  # not among the extras: large

    network = openvino.Core().read_model(_exported(model, images, file))
    network.reshape(list(images.shape))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: images.numpy()})


_MAKERS: dict[str, Callable[[nn.Module, Tensor, Path], Callable[[], object]]] = {
    "pytorch": _pytorch,
    "pytorch compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
