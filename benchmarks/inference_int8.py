"""ResNet-18 for CIFAR in 8 bits, pruned: torchswat's runtime against dense 8-bit runtimes of others, in one race.

    python benchmarks/inference_int8.py --output docs/results/inference-int8.json

The peers run the network that torchswat runs unstructured, quantized by onnxruntime.quantization (static, QDQ, a
scale for each filter), each at its best settings: ONNX Runtime with threads that do not spin, OpenVINO for latency.
A peer that is not installed is left out, and that is said. In each round every contestant runs once right before
it is timed, and another one begins. Weights are random and so are images; speed does not depend on them. Beside
medians stand the fastest turns (``fastest_ms``, ``fastest_speed_up``), which other programs on the machine disturb
less.

With ``--accuracy RUN`` (a folder that ``torchswat train`` wrote, of CIFAR-10) the accuracy in float32 and in 8 bits
on all test images is noted, too.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import torchswat
from torchswat import data, models
from torchswat.bench.race import faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.deploy.export import export_run
from torchswat.deploy.onnx import export_onnx
from torchswat.runtime.network import normalised
from torchswat.runtime.package import About
from torchswat.runtime.trace import pruned
from torchswat.training.run_folder import version_of

NETWORK = "resnet18"
TARGETS = {"int8": {1: 1.3, 16: 1.4, 64: 1.5}, "int8 1x4": {1: 3.0, 16: 3.0, 64: 3.0}}
"""Speed-ups over the fastest dense 8-bit peer at a sparsity of 0.9, by batch size."""
CALIBRATED = 128  # images

Run = Callable[[], object]


def settled(block: tuple[int, int], sparsity: float) -> nn.Module:
    """Return the network with statistics of batch norm, pruned."""
    torch.manual_seed(0)
    model = models.create(NETWORK, form="cifar")
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(64, 3, 32, 32))
    return torchswat.sparsify_(model.eval(), sparsity=sparsity, block=block, skip=("first",))


def calibration() -> np.ndarray:
    """Return images by which ranges are chosen."""
    return np.random.default_rng(0).normal(size=(CALIBRATED, 3, 32, 32)).astype(np.float32)


# ---- contestants -------------------------------------------------------------------------------------------


def ours(folder: Path, sparsity: float) -> dict[str, Callable[[np.ndarray], Run]]:
    """Return torchswat in float32 and 8 bits, unstructured and in blocks, as files to be loaded."""
    found: dict[str, Callable[[np.ndarray], Run]] = {}
    for name, block in (("", (1, 1)), (" 1x4", (1, 4))):
        dense, small = folder / f"float{name}", folder / f"int8{name}"
        if not small.exists():
            torchswat.save(settled(block, sparsity), dense)
            torchswat.quantize(dense, small, calibration())
        for form, path in (("float32", dense), ("int8", small)):
            found[form + name] = partial(_network, path)
    return found


def _network(path: Path, images: np.ndarray) -> Run:
    network, x = torchswat.load(path), torch.from_numpy(images)

    def run() -> object:
        with torch.inference_mode():
            return network(x)

    return run


def quantized_onnx(folder: Path, sparsity: float) -> Path:
    """Return the network as onnxruntime quantizes it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(np.split(calibration(), CALIBRATED // 32))

        def get_next(self) -> Any:
            images = next(self.left, None)
            return None if images is None else {"images": images}

    dense, ready, small = (folder / f"{name}.onnx" for name in ("dense", "ready", "int8"))
    if small.exists():
        return small
    export_onnx(pruned(settled((1, 1), sparsity)), dense, (3, 32, 32))
    quant_pre_process(str(dense), str(ready))
    quantize_static(
        str(ready),
        str(small),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return small


def _onnxruntime(path: Path, images: np.ndarray) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def _openvino(path: Path, images: np.ndarray) -> Run:
    openvino = importlib.import_module("openvino")  # not among the extras: large
    network = openvino.Core().read_model(path)
    network.reshape(list(images.shape))
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: images})


PEERS: dict[str, Callable[[Path, np.ndarray], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def _several(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()


def rows_of(n: int, repeats: int, sparsity: float, make: dict[str, Callable[[np.ndarray], Run]]) -> list[Row]:
    """Race all contestants at one batch size."""
    images = np.random.default_rng(1).normal(size=(n, 3, 32, 32)).astype(np.float32)
    calls = max(1, 4 // n)
    runs = {name: partial(_several, contestant(images), calls) for name, contestant in make.items()}
    samples = {
        name: [ms / calls for ms in times] for name, times in race(runs, repeats, in_turns=True).items()
    }
    peers = {name: times for name, times in samples.items() if name in PEERS}
    best = median(samples[faster(peers)]) if peers else None
    fastest = min(min(times) for times in peers.values()) if peers else None
    return [
        {
            "network": NETWORK,
            "batch_size": n,
            "how": name if name in PEERS else f"torchswat {name}",
            "bits": 32 if "float32" in name else 8,
            "sparsity": None if name in PEERS else sparsity,
            "block": [1, 4] if "1x4" in name else [1, 1],
            "ms": median(times),
            "spread": spread(times),
            "fastest_ms": min(times),
            "fastest_speed_up": None if fastest is None else fastest / min(times),
            "speed_up": None if best is None else best / median(times),
            "target": TARGETS.get(name, {}).get(n) if sparsity == 0.9 else None,
            "samples": {name: times},
        }
        for name, times in samples.items()
    ]


# ---- accuracy ----------------------------------------------------------------------------------------------


def accuracy_of(run: Path) -> Row:
    """Return the accuracy of a run's network on all test images of CIFAR-10, in float32 and in 8 bits, in per cent."""
    cifar: Any = data.load("cifar10")
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "network.safetensors", Path(folder) / "int8"
        export_run(run, Path(folder), ("sparse",), check=False)
        about: About = torchswat.load(dense).package.about
        torchswat.quantize(dense, small, normalised(cifar.train.images[:512], about).numpy())
        found: Row = {"run": dict(about.provenance), "test_images": len(cifar.test.labels)}
        for form, path in (("float32", dense), ("int8", small)):
            network, right = torchswat.load(path), 0
            for at in range(0, len(cifar.test.labels), 500):
                scores = network(normalised(cifar.test.images[at : at + 500], about))
                right += int((scores.argmax(1) == cifar.test.labels[at : at + 500]).sum())
            found[f"accuracy_{form}"] = 100 * right / len(cifar.test.labels)
            found[f"bytes_{form}"] = path.stat().st_size
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Run the race, print its table and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--networks", type=Path, help="A folder of one sparsity, to make the networks only once."
    )
    parser.add_argument("--accuracy", type=Path, action="append", default=[], metavar="RUN")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(words)
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.networks or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        make = ours(folder, arguments.sparsity)
        present = [peer for peer in PEERS if peer not in absent]
        if present:
            path = quantized_onnx(folder, arguments.sparsity)
            make |= {peer: partial(PEERS[peer], path) for peer in present}
        rows: list[Row] = []
        for n in arguments.batch_size or (1, 16, 64):
            rows += rows_of(n, arguments.repeats, arguments.sparsity, make)
            for row in rows[-len(make) :]:
                target = f", target {row['target']}" if row["target"] else ""
                times = f"{row['ms']:8.3f} ms, {row['speed_up'] or 0:5.2f} x, fastest {row['fastest_ms']:8.3f} ms, "
                times += f"{row['fastest_speed_up'] or 0:5.2f} x{target}"
                print(f"batch {n:3}  {row['how']:24} {times}", flush=True)
    summary = [accuracy_of(run) for run in arguments.accuracy]
    for row in summary:
        print(f"accuracy {row['accuracy_float32']:.2f} in float32, {row['accuracy_int8']:.2f} in 8 bits")
    if arguments.output:
        situation = circumstances(0, arguments.repeats) | {
            "peers": {peer: version_of(peer) for peer in PEERS}
        }
        remarks = [f"{peer} is left out: it is not installed" for peer in absent]
        Record("inference-int8", situation, rows, summary, remarks).write(arguments.output)


if __name__ == "__main__":
    main()
