"""Networks that are not plain chains of convolutions and ReLUs: this runtime, ONNX Runtime and PyTorch in turns.

    python benchmarks/runtime_networks.py --output docs/results/runtime-networks.json

MobileNetV2, EfficientNet-B0 and ViT-tiny are those of Hugging Face transformers with random weights, the U-Net and the
audio network are below. The largest weights are kept: of layers with several channels but the first and the last, and
of mobile networks of 1x1 kernels alone. The others run the same network with the zeros among its weights. Each runs
once right before it is timed, and threads of none spin while another runs. `new_size` is the first call at another size
of the input, where the network takes one: preparation and all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import torchswat
from torchswat.bench.file import _gap, _layers, _onnxruntime
from torchswat.bench.peak import peak_bandwidth, peak_gflops
from torchswat.bench.race import faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.runtime.onnx_writer import to_onnx
from torchswat.runtime.package import Package
from torchswat.runtime.session import Sessions


class Logits(nn.Module):
    """A model of transformers that returns a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def _transformer(kind: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_labels=1000, **settings)
    return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))


def mobilenet() -> nn.Module:
    """MobileNetV2 1.0."""
    return _transformer("MobileNetV2", {"tf_padding": False})


def efficientnet() -> nn.Module:
    """EfficientNet-B0."""
    sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}
    return _transformer("EfficientNet", sizes)


def vit() -> nn.Module:
    """ViT-tiny: 12 layers, 192 wide, patches of 16."""
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    return _transformer("ViT", sizes)


def _twice(read: int, made: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (read, made):
        layers += [nn.Conv2d(channels, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """The usual U-Net, from 32 to 512 channels: four times down and up, transposed convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(map(_twice, [3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * made, made, 2, 2) for made in widths[-2::-1])
        self.join = nn.ModuleList(_twice(2 * made, made) for made in widths[-2::-1])
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for level, layer in enumerate(self.down):
            x = layer(x if level == 0 else nn.functional.max_pool2d(x, 2))
            sides.append(x)
        for up, join, side in zip(self.up, self.join, sides[-2::-1], strict=True):
            x = join(torch.cat([side, up(x)], 1))
        return self.last(x)


class Audio(nn.Module):
    """A second of sound at 16 kHz: residual blocks of 1-D convolutions with growing gaps."""

    def __init__(self, width: int = 128, blocks: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, width, 80, 16, 40), nn.BatchNorm1d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 5, padding=2 * gap, dilation=gap, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Conv1d(width, width, 1, bias=False),
                nn.BatchNorm1d(width),
            )
            for gap in (1, 2, 4, 8) * (blocks // 4)
        )
        self.last = nn.Linear(width, 35)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.last(x.mean(2))


@dataclass(frozen=True)
class Case:
    """A network, what it is given, how much of it is zero, and the speed-up that is asked for.

    Attributes
    ----------
    make : callable
        Returns the network.
    input_shape : tuple of int
        The number of images first.
    sparsity : float
        Of each pruned layer.
    target : float
        Over the fastest of the others.
    pointwise : bool
        Whether layers with 1x1 kernels are pruned alone.
    new_size : tuple of int or None
        Another size of the input that the network takes.
    """

    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    sparsity: float
    target: float
    pointwise: bool = False
    new_size: tuple[int, ...] | None = None


CASES = {
    "mobilenet-v2": Case(mobilenet, (1, 3, 224, 224), 0.85, 1.5, True, (1, 3, 192, 160)),
    "efficientnet-b0": Case(efficientnet, (1, 3, 224, 224), 0.85, 1.5, True, (1, 3, 192, 160)),
    "vit-tiny": Case(vit, (8, 3, 224, 224), 0.9, 1.8),
    "unet": Case(UNet, (1, 3, 128, 128), 0.9, 2.5, False, (1, 3, 96, 160)),
    "audio": Case(Audio, (1, 1, 16000), 0.9, 2.0, False, (1, 1, 12000)),
}


@torch.no_grad()
def pruned(case: Case) -> nn.Module:
    """Return the network with statistics as after training, and the smallest weights of its layers zero."""
    torch.manual_seed(0)
    model = case.make().eval()
    layers = []
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            layers.append(module)
    for layer in layers[1:-1]:
        weight = layer.weight
        if weight.shape[1] == 1 or (case.pointwise and weight[0, 0].numel() != 1):
            continue  # depthwise, or no 1x1 kernel
        kept = weight.numel() - int(case.sparsity * weight.numel())
        limit = weight.abs().flatten().kthvalue(weight.numel() - kept + 1).values
        weight.mul_(weight.abs() >= limit)
    norms = [each for each in model.modules() if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:  # take the statistics of this batch, so that signals keep their size
        norm.momentum = 1.0
        norm.train()
    model(torch.randn(2, *case.input_shape[1:]))
    for norm in norms:
        norm.eval()
    return model


def bench(name: str, repeats: int, facts: Row, folder: Path, torch_too: bool = True) -> list[Row]:
    """Return a row for each contestant."""
    case = CASES[name]
    model, path = pruned(case), folder / name
    draw = np.random.default_rng(0)
    x = draw.standard_normal(case.input_shape, np.float32)
    torchswat.save(model, path, (torch.randn(2, *case.input_shape[1:]),))
    package, threads = Package.read(path), torch.get_num_threads()
    start = time.perf_counter()
    network = Sessions(package.graph, package.tensors)
    network.run([x], threads)
    first_call = time.perf_counter() - start
    network.run([x], threads)
    model_file = folder / f"{name}.onnx"
    model_file.write_bytes(to_onnx(package, [x.shape]))
    other = _onnxruntime(model_file, {package.graph.inputs[0].name: x}, threads)
    dense = torch.from_numpy(x)

    def plain() -> list[np.ndarray]:
        with torch.inference_mode():
            return [model(dense).numpy()]

    contestants = {"torchswat": lambda: network.run([x], threads), "onnxruntime": other}
    if torch_too:
        contestants["torch"] = plain
    samples = race(contestants, repeats, in_turns=True)
    rival = faster({key: times for key, times in samples.items() if key != "torchswat"})
    ours = median(samples["torchswat"])
    rows: list[Row] = [
        {
            "network": name,
            "input_shape": list(case.input_shape),
            "sparsity": case.sparsity,
            "how": how,
            "ms": median(times),
            "spread": spread(times),
            "samples": {how: times},
        }
        for how, times in samples.items()
    ]
    answer = contestants["torchswat"]()
    for row in rows[1:]:
        row["gap"] = _gap(answer, contestants[row["how"]]())
    rows[0] |= {"speed_up": median(samples[rival]) / ours, "over": rival, "target": case.target}
    rows[0] |= {"first_call_ms": 1000 * first_call}
    if case.new_size is not None:
        image = draw.standard_normal(case.new_size, np.float32)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            network.run([image], threads)
            times.append(1000 * (time.perf_counter() - start))
        rows[0]["new_size"] = {"input_shape": list(case.new_size), "ms": times[0], "again_ms": times[1]}
    rows[0]["layers"] = _layers(network, [x], threads, repeats, facts)
    return rows


def main() -> None:
    """Time every network, print what came out and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--layers", type=int, default=0, help="so many of the slowest layers are printed")
    words = parser.parse_args()
    facts = circumstances(0, words.repeats)
    facts |= {"peak_gflops": peak_gflops(), "peak_bandwidth": peak_bandwidth()}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in words.networks or CASES:
            found = bench(name, words.repeats, facts, Path(folder))
            rows += found
            for row in found:
                print(
                    f"{name:16} {row['how']:12} {row['ms']:8.2f} ms  +-{row['spread']:.0%}  {row.get('gap', 0):.1e}"
                )
            ours = found[0]
            print(f"{name:16} {ours['speed_up']:.2f}x over {ours['over']}, asked {ours['target']}x")
            if "new_size" in ours:
                print(
                    f"{name:16} new size {ours['new_size']['ms']:.1f} ms, again {ours['new_size']['again_ms']:.1f} ms"
                )
            _print_layers(ours["layers"], words.layers)
    if words.output:
        Record("runtime-networks", facts, rows, [], []).write(words.output)


def _print_layers(layers: list[Row], most: int) -> None:
    if not most:
        return
    kinds: dict[tuple[str, str], list[float]] = {}
    for row in layers:
        kinds.setdefault((row["operation"], row["runs_in"]), []).append(row["ms"])
    for kind, times in sorted(kinds.items(), key=lambda each: -sum(each[1])):
        print(f"    {'/'.join(kind):28} {len(times):3} {sum(times):8.3f} ms")
    for row in sorted(layers, key=lambda each: -each["ms"])[:most]:
        work = f"{row['operations'] / 1e6:8.1f} MFLOP {row['bytes'] / 1e6:6.2f} MB"
        print(
            f"    {row['ms']:8.3f} ms, bound {row['bound_ms']:7.3f} by {row['bound']:10} {row['runs_in']:6} "
            f"{row['operation']:12} {work} {row['layer']:.48}"
        )


if __name__ == "__main__":
    main()
