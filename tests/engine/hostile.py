"""A program that calls the operations with hostile operands: ``python hostile.py KIND EXAMPLES``.

It runs in a process of its own, so that a crash ends it alone; the last line it prints is how many calls were
accepted. Every other call has to end in an exception of Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("TORCHSWAT_PLAN", "sparse")
    sys.path.insert(0, str(Path(__file__).parent))

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import Call
from torch import Tensor

from torchswat.engine.loader import engine
from torchswat.engine.state import PRODUCTS, new_state
from torchswat.errors import NotFinite

KINDS = "forward", "backward", "layout"
EXPECTED = (
    NotFinite,
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    NotImplementedError,
    MemoryError,
    OverflowError,
)
"""What a call may raise: the errors of this package and of torch's own checks."""

sides = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7])
integers = st.one_of(st.sampled_from([-(2**40), -7, -1, 0, 1, 2, 3, 2**20, 2**31, 2**40]), st.integers(-3, 3))
words = st.one_of(
    st.integers(0, 31), st.sampled_from([-1, 1 << 40, -(1 << 62)]), st.integers(-(2**63), 2**63 - 1)
)
CALLS = [
    Call((3, 4, 5, 6), 4, padding=(1, 1)),
    Call((17, 2, 4, 4), 3, (1, 1), stride=(2, 2), bias=False),
    Call((3, 4, 5, 6), 4, groups=2),
    Call((3, 4, 5, 6), 4, groups=4),
    Call((3, 4, 5, 6), 4, dilation=(2, 1), products=0, slots=3),
    Call((6, 5), 4),
    Call((6, 5), 4, products=0, exact=False),
]
FORWARD = (
    "x", "weight", "bias", "state", "weight_mask", "activation_mask", "schedule", "sparsity",
    "kept_weights", "kept_activations", "room", "stride", "padding", "dilation",
    "groups", "slots", "search", "period", "warmup", "products", "chwn", "training", "save", "recompute", "name",
)  # fmt: skip
BACKWARD = (
    "gradient", "x", "weight", "saved", "record", "weight_mask", "input_size", "input_layout", "stride",
    "padding", "dilation", "groups", "slots", "chwn", "wanted",
)  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.complex64]


@st.composite
def tensors(draw: Any, like: Tensor | None) -> Tensor | None:
    """Return what stands in a tensor's place: of other shape, dtype, device, strides, values; or none."""
    kinds = [
        "none",
        "any",
        "dtype",
        "device",
        "short",
        "long",
        "expanded",
        "turned",
        "gapped",
        "values",
        "offset",
    ]
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    if kind == "any" or like is None:
        shape = draw(st.lists(sides, max_size=5))
        return torch.zeros(shape).to(draw(st.sampled_from(DTYPES)))
    if kind == "dtype":
        return like.to(draw(st.sampled_from(DTYPES)))
    if kind == "device":
        return like.to("meta")
    if like.dim() == 0:
        return like
    if kind == "short":
        side = draw(st.integers(0, like.dim() - 1))
        return like.narrow(side, 0, min(1, like.shape[side]))
    if kind == "long":
        return torch.cat([like, like], draw(st.integers(0, like.dim() - 1)))
    if kind == "expanded":
        return like[:1].expand(like.shape)
    if kind == "turned":
        return like.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "gapped":
        wide = like.new_zeros(*like.shape[:-1], 2 * like.shape[-1])
        return wide[..., ::2].copy_(like)
    if kind == "offset":
        buffer = like.new_zeros(like.numel() + 1)
        return buffer[1:].view(like.shape).copy_(like)
    if like.dtype is torch.uint8:
        byte = draw(st.sampled_from([0, 1, 127, 255]))
        damaged = like.clone()
        damaged[draw(st.integers(0, max(0, like.numel() - 1))) :] = byte
        return damaged
    if like.dtype is torch.int64:
        damaged = like.clone()
        for at in (
            draw(st.lists(st.integers(0, like.numel() - 1), min_size=1, max_size=3)) if like.numel() else []
        ):
            damaged.view(-1)[at] = draw(words)
        return damaged
    if like.dtype is torch.bool:
        return torch.ones_like(like) if draw(st.booleans()) else torch.zeros_like(like)
    value = draw(st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("nan"), 1e-45, 3e38]))
    return torch.full_like(like, value)


@st.composite
def replaced(draw: Any, arguments: list[Any], names: tuple[str, ...]) -> list[Any]:
    """Return the arguments with one to three of them made hostile."""
    arguments = list(arguments)
    for at in draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=3, unique=True)):
        value, name = arguments[at], names[at]
        if isinstance(value, Tensor) or value is None:
            like = value
            if name == "weight_mask":
                weight = arguments[names.index("weight")]
                like = None if weight is None else torch.ones_like(weight, dtype=torch.bool)
            if name == "activation_mask":
                like = torch.ones_like(arguments[0], dtype=torch.bool) if arguments[0] is not None else None
            if name == "schedule":
                like = torch.tensor([0.5, 0.7])
            arguments[at] = draw(tensors(like)) if draw(st.booleans()) or value is not None else like
        elif name == "wanted":
            arguments[at] = draw(st.lists(st.booleans(), min_size=3, max_size=3))
        elif isinstance(value, bool):
            arguments[at] = not value
        elif isinstance(value, int):
            arguments[at] = draw(integers)
        elif isinstance(value, float):
            arguments[at] = draw(
                st.sampled_from([-1.0, 0.0, 0.3, 0.999, 1.0, 7.0, float("nan"), float("inf")])
            )
        elif isinstance(value, str):
            arguments[at] = draw(st.text(max_size=5))
        else:
            length = st.integers(len(value), len(value)) if draw(st.booleans()) else st.integers(0, 5)
            arguments[at] = [draw(integers) for _ in range(draw(length))]
    return arguments


def too_large(arguments: list[Any]) -> bool:
    """Return whether a result would be of more than some megabytes, which says nothing about checks."""
    pads = [p for p in arguments if isinstance(p, list | tuple)]
    return any(isinstance(p, int) and 1000 < p < 2**31 for pair in pads for p in pair)


class Tried:
    """How many calls were accepted."""

    accepted = 0

    def call(self, operation: Any, arguments: list[Any]) -> Any:
        """Call an operation, and read all that it returns."""
        try:
            found = operation(*arguments)
        except EXPECTED as error:
            assert str(error), f"{type(error).__name__} without words"
            return None
        for tensor in found if isinstance(found, tuple) else (found,):
            if not tensor.is_meta:
                tensor.clone()
        self.accepted += 1
        return found


def main(kind: str, examples: int) -> None:
    """Run that many examples of a kind."""
    tried = Tried()
    operations = torch.ops.torchswat
    run = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    @run
    @given(st.data(), st.sampled_from(CALLS), st.sampled_from(["reference", "auto"]))
    def forward(data: Any, call: Call, which: str) -> None:
        arguments = [*call.operands(), new_state(), None, None, None, *call.arguments()]
        hostile = data.draw(replaced(arguments, FORWARD))
        if too_large(hostile):
            return
        with engine(which):
            found = tried.call(operations.sparse_forward, hostile)
            if found is None or any(t.is_meta for t in found):
                return
            y, saved, record = found
            x, weight = hostile[:2]
            geometry = *hostile[11:16], hostile[20]
            arguments = [
                torch.ones_like(y),
                x,
                weight,
                saved,
                record,
                hostile[4],
                x.shape,
                0,
                *geometry,
                [True] * 3,
            ]
            tried.call(operations.sparse_backward, arguments)

    @run
    @given(st.data(), st.sampled_from(CALLS), st.sampled_from(["reference", "auto"]), st.booleans())
    def backward(data: Any, call: Call, which: str, flags: bool) -> None:
        x, weight, bias = call.operands()
        with engine(which):
            y, saved, record = call.run(x, weight, bias)
        if flags:
            record[PRODUCTS] = data.draw(st.integers(0, 31))
        arguments = call.backward_arguments(torch.randn_like(y), x, weight, saved, record)
        hostile = data.draw(replaced(arguments, BACKWARD))
        if too_large(hostile):
            return
        with engine(data.draw(st.sampled_from(["reference", "auto"]))):
            tried.call(operations.sparse_backward, hostile)

    @run
    @given(st.data(), st.sampled_from(["reference", "auto"]))
    def layout(data: Any, which: str) -> None:
        x = torch.randn(3, 4, 5, 6)
        with engine(which):
            other = data.draw(tensors(x))
            tried.call(operations.to_chwn, [other])
            tried.call(operations.to_layout, [other, data.draw(integers)])
            tried.call(operations.to_layout, [x, data.draw(integers)])

    {"forward": forward, "backward": backward, "layout": layout}[kind]()
    print(tried.accepted)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
