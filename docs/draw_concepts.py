"""The drawings of the pages under docs/concepts, made by the package's own selection, layout and byte counts.

``python docs/draw_concepts.py [FOLDER]`` writes them, by default into docs/images/concepts; the same versions write the
same files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import torchswat
from torchswat.bench.footprint import kept_bytes
from torchswat.drawing import COLOURS, FAINT, INK, legend, panels, render
from torchswat.engine.layout import chwn_strides
from torchswat.files import write_atomically

FOLDER = Path(__file__).parent / "images" / "concepts"
BLUE, RED, GREEN, PURPLE = COLOURS[:4]
SPARSITY = 0.8


def _cell(panel: Axes, x: float, y: float, size: float, colour: str, kept: bool) -> None:
    panel.add_patch(
        Rectangle(
            (x, y),
            0.88 * size,
            0.88 * size,
            facecolor=colour if kept else "none",
            edgecolor=FAINT,
            linewidth=0.6,
        )
    )


def _grid(panel: Axes, mask: Tensor, x: float, y: float, colour: str, size: float = 1.0) -> None:
    """Draw a mask (rows, columns) with its upper left corner at x, y."""
    for row, line in enumerate(mask.tolist()):
        for column, kept in enumerate(line):
            _cell(panel, x + column * size, y - (row + 1) * size, size, colour, kept)


def _blank(panel: Axes, width: float, height: float) -> None:
    panel.set(xlim=(-0.2, width), ylim=(-0.2, height), aspect="equal")
    panel.axis("off")


# ---- the three products ------------------------------------------------------------------------------------


def products() -> Figure:
    """Each product of a layer with its operands; SWAT's are masked by Top-K at a sparsity of 0.8."""
    generator = torch.Generator().manual_seed(0)
    weight, activation = (torch.randn(5, 5, generator=generator) for _ in range(2))
    w = torchswat.select(weight, SPARSITY)
    a = torchswat.select(activation, SPARSITY)
    full = torch.ones(5, 5, dtype=torch.bool)
    rows = (
        ("forward", "activation a", full, GREEN, "weight T(w)", w, BLUE, "output Y"),
        ("input gradient", "output gradient g", full, RED, "weight T(w)", w, BLUE, "dX"),
        ("weight gradient", "output gradient g", full, RED, "activation T(a)", a, GREEN, "dW"),
    )
    figure, (panel,) = panels(width=6.4, height=4.6)
    _blank(panel, 33, 26)
    for place, (name, left, left_mask, left_colour, right, right_mask, right_colour, result) in enumerate(
        rows
    ):
        y = 25.0 - 9 * place
        panel.text(0, y - 2.5, name.replace(" ", "\n"), va="center", fontsize=9, fontweight="bold", color=INK)
        for x, label, mask, colour in (
            (7, left, left_mask, left_colour),
            (16, right, right_mask, right_colour),
            (26, result, full, PURPLE),
        ):
            _grid(panel, mask, x, y, colour)
            panel.text(x + 2.5, y - 5.4, label, ha="center", va="top", fontsize=8, color=INK)
        panel.text(14, y - 2.5, "∗", ha="center", va="center", fontsize=14, color=INK)
        panel.text(23.5, y - 2.5, "→", ha="center", va="center", fontsize=14, color=INK)
    return figure


# ---- the scopes of Top-K -----------------------------------------------------------------------------------


def scopes() -> Figure:
    """The entries of one weight (4, 3, 3, 3) that each scope keeps at a sparsity of two thirds."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    weight *= torch.tensor([1.6, 1.0, 0.6, 0.9]).view(
        4, 1, 1, 1
    )  # filters differ in magnitude, as trained ones do
    figure, axes = panels(3, width=2.3, height=3.3)
    said = {
        "nchw": "the whole tensor",
        "chw": "each filter",
        "hw": "each kernel",
    }
    for panel, (scope, over) in zip(axes, said.items(), strict=True):
        mask = torchswat.select(weight, 2 / 3, scope=scope)
        _blank(panel, 12.2, 17.5)
        for filter_, kernels in enumerate(mask):
            for channel, kernel in enumerate(kernels):
                _grid(panel, kernel, 1.2 + 3.7 * channel, 15 - 3.7 * filter_, BLUE)
            panel.text(
                0.6,
                13.5 - 3.7 * filter_,
                str(int(kernels.sum())),
                ha="center",
                va="center",
                fontsize=7,
                color=INK,
            )
        panel.set_title(f"{scope}: {over}", fontsize=9, color=INK)
    return figure


# ---- what is saved for backward ----------------------------------------------------------------------------


class _Block(nn.Sequential):
    """Two convolutions with batch norm and ReLU, as most networks repeat them."""

    def __init__(self) -> None:
        super().__init__()
        for index in (1, 2):
            self.add_module(f"conv{index}", nn.Conv2d(64, 64, 3, padding=1, bias=False))
            self.add_module(f"norm{index}", nn.BatchNorm2d(64))
            self.add_module(f"relu{index}", nn.ReLU())


def _saved(sparse: bool, fused: bool, norm_input: str) -> dict[str, int]:
    """Return the bytes saved for backward by class of layer, in one pass of a block on 32 images of 32x32."""
    torch.manual_seed(0)
    block = _Block()
    x = torch.randn(32, 64, 32, 32, requires_grad=True)
    if sparse:
        torchswat.sparsify_(block, "swat", SPARSITY, norm_input=norm_input)
    if fused:
        torchswat.fuse_(block)
    kinds = dict.fromkeys(("conv", "norm", "relu"), 0)
    for layer in kept_bytes(block, lambda: block(x).sum(), ()):
        kind = layer.name.rpartition(".")[2][:4]
        kinds[kind if kind in kinds else "norm"] += layer.activations  # a fused chain saves in its batch norm
    return kinds


def saved() -> Figure:
    """Bytes that two convolutions with batch norm and ReLU save, dense and with SWAT at 0.8; counted in a pass."""
    ways = {
        "dense": (False, False, "whole"),
        "SWAT": (True, False, "whole"),
        "SWAT, fused": (True, True, "whole"),
        "SWAT, fused,\n8 bits": (True, True, "int8"),
    }
    figure, (panel,) = panels(width=6.4, height=2.8)
    parts = {
        "conv": (GREEN, "input of convolution"),
        "norm": (BLUE, "input of batch norm"),
        "relu": (RED, "of ReLU"),
    }
    for row, way in enumerate(ways.values()):
        found, left = _saved(*way), 0.0
        for kind, (colour, label) in parts.items():
            size = found[kind] / 2**20
            panel.barh(row, size, left=left, height=0.62, color=colour, label=label if row == 0 else None)
            left += size
        panel.text(left + 0.5, row, f"{left:.1f} MiB", va="center", fontsize=8, color=INK)
    panel.set_yticks(range(len(ways)), list(ways))
    panel.invert_yaxis()
    panel.set(xlabel="MiB saved for backward, batch of 32, 64 channels, 32x32", xlim=(0, 62))
    legend(panel, loc="lower right")
    return figure


# ---- the CHWN layout ---------------------------------------------------------------------------------------


def chwn() -> Figure:
    """The order in memory of a tensor of 4 samples, 2 channels, 1x2 entries; colours are samples."""
    size = (4, 2, 1, 2)
    orders = {"NCHW": torch.empty(size).stride(), "CHWN": chwn_strides(size)}
    figure, (panel,) = panels(width=6.4, height=2.1)
    _blank(panel, 20, 7.4)
    for row, (name, strides) in enumerate(orders.items()):
        y = 6.0 - 3.4 * row
        panel.text(0, y - 0.5, name, va="center", fontsize=9, fontweight="bold", color=INK)
        for n in range(4):
            for c in range(2):
                for w in range(2):
                    place = n * strides[0] + c * strides[1] + w * strides[3]
                    _cell(panel, 3 + place, y - 1, 1, COLOURS[n], True)
                    label = f"c{c}\nw{w}" if name == "NCHW" or n == 0 else ""
                    panel.text(3.44 + place, y - 1.25, label, ha="center", va="top", fontsize=6.5, color=INK)
    for n in range(4):
        panel.text(3 + 4 * n, 7.0, f"sample {n}", fontsize=8, color=COLOURS[n])
    return figure


DRAWINGS = {"products": products, "scopes": scopes, "saved": saved, "chwn": chwn}


def main() -> None:
    """Write every drawing."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        path = folder / f"{name}.svg"
        svg = render(draw(), "svg", name).replace(
            b"<svg ", b'<svg style="background: white" ', 1
        )  # on any theme
        write_atomically(path, svg)
        print(path)


if __name__ == "__main__":
    main()
