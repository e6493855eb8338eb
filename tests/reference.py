"""The truth the tests compare with: the paper in numpy float64, slow and obvious.

It shares no code with the package and calls nothing of torch but to turn tensors into arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

TABLE: dict[str, dict[str, tuple[str, str]]] = {
    "dense": {"forward": ("w", "a"), "grad_input": ("g", "w"), "grad_weight": ("g", "a")},
    "swat": {"forward": ("T(w)", "a"), "grad_input": ("g", "T(w)"), "grad_weight": ("g", "T(a)")},
    "saw": {"forward": ("w", "a"), "grad_input": ("g", "T(w)"), "grad_weight": ("g", "T(a)")},
    "meprop": {"forward": ("w", "a"), "grad_input": ("T(g)", "w"), "grad_weight": ("T(g)", "a")},
    "forward-activation": {
        "forward": ("w", "T(a)"),
        "grad_input": ("g", "w"),
        "grad_weight": ("g", "a"),
    },
    "forward-weight": {"forward": ("T(w)", "a"), "grad_input": ("g", "w"), "grad_weight": ("g", "a")},
    "random": {"forward": ("R(w)", "a"), "grad_input": ("g", "R(w)"), "grad_weight": ("g", "R(a)")},
    "saw-random": {"forward": ("w", "a"), "grad_input": ("g", "R(w)"), "grad_weight": ("g", "R(a)")},
    "dsg": {"forward": ("w", "a"), "grad_input": ("M(g)", "w"), "grad_weight": ("M(g)", "a")},
}
"""Operands of the three products: T is Top-K, R a given random mask, M the given mask of DSG's outputs."""


def array(values) -> np.ndarray:
    """Return tensor or array as float64 array in the order of its shape."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.array(values, dtype=np.float64)


# ---- selection ---------------------------------------------------------------------------------------------


def kept_count(entries: int, sparsity: float) -> int:
    """Return n - floor(S * n), at least one, with S the decimal number that a person wrote."""
    return min(entries, max(1, entries - int(Fraction(str(sparsity)) * entries)))


def row_length(shape: tuple[int, ...], scope: str) -> int:
    """Return over how many entries the scope counts: of a matrix ``chw`` and ``hw`` are each row."""
    if scope == "nchw" or len(shape) < 2:
        first = 0
    elif len(shape) == 2 or scope == "chw":
        first = 1
    else:
        first = 2
    return int(np.prod(shape[first:], dtype=int))


def top_k(values, sparsity: float, scope: str = "nchw") -> np.ndarray:
    """Return the mask of the k largest magnitudes of every row; among equals the lowest index is kept."""
    values = array(values)
    mask = np.zeros(values.size, dtype=bool)
    length = row_length(values.shape, scope)
    for start in range(0, values.size, length or 1):
        row = np.abs(values.reshape(-1)[start : start + length])
        best_first = np.argsort(-row, kind="stable")
        mask[start + best_first[: kept_count(length, sparsity)]] = True
    return mask.reshape(values.shape)


def top_blocks(values, sparsity: float, block: tuple[int, int], groups: int = 1) -> np.ndarray:
    """Return the mask of the blocks (filters, channels) of a weight whose magnitudes have the largest sums.

    Blocks lie within a group and at one kernel position; as many as `kept_count` says, among equals the first.
    """
    values = np.abs(array(values))
    weight = values.reshape(*values.shape[:2], -1)
    filters = len(weight) // groups
    blocks = [
        (slice(row, min(row + block[0], (group + 1) * filters)), slice(column, column + block[1]), position)
        for group in range(groups)
        for row in range(group * filters, (group + 1) * filters, block[0])
        for column in range(0, weight.shape[1], block[1])
        for position in range(weight.shape[2])
    ]
    best_first = np.argsort([-weight[where].sum() for where in blocks], kind="stable")
    mask = np.zeros(weight.shape, dtype=bool)
    for i in best_first[: kept_count(len(blocks), sparsity)]:
        mask[blocks[i]] = True
    return mask.reshape(values.shape)


# ---- the three products ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """The products of a two-dimensional convolution, tap by tap."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    mode: str = "zeros"

    def sides(self) -> list[tuple[int, int]]:
        """Return padding before and after of height and width; "same" puts an odd one after."""
        if self.padding == "valid":
            return [(0, 0), (0, 0)]
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        assert not isinstance(self.padding, str)
        return [(p, p) for p in self.padding]

    def source(self, height: int, width: int) -> np.ndarray:
        """Return for each padded position the input position it shows, -1 where it shows zero."""
        places = np.arange(height * width).reshape(height, width)
        if self.mode == "zeros":
            return np.pad(places, self.sides(), constant_values=-1)
        if self.mode == "reflect":
            return np.pad(places, self.sides(), "reflect")
        return np.pad(places, self.sides(), "edge" if self.mode == "replicate" else "wrap")

    def pad(self, a: np.ndarray) -> np.ndarray:
        source = self.source(*a.shape[2:])
        flat = np.concatenate([a.reshape(*a.shape[:2], -1), np.zeros((*a.shape[:2], 1))], axis=2)
        return flat[:, :, source]  # -1 is the zero at the end

    def unpad(self, padded: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the adjoint of `pad`: what arrives at a padded position goes to the input it shows."""
        flat = np.zeros((*padded.shape[:2], height * width + 1))
        for (i, j), place in np.ndenumerate(self.source(height, width)):
            flat[:, :, place] += padded[:, :, i, j]
        return flat[:, :, :-1].reshape(*padded.shape[:2], height, width)

    def output_size(self, padded: np.ndarray) -> list[int]:
        return [
            (padded.shape[2 + i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        ]

    def taps(self, padded: np.ndarray):
        """Yield kernel position and the slices of the padded input that it meets."""
        size = self.output_size(padded)
        for r in range(self.kernel[0]):
            for s in range(self.kernel[1]):
                first = r * self.dilation[0], s * self.dilation[1]
                yield (
                    r,
                    s,
                    *(slice(f, f + n * t, t) for f, n, t in zip(first, size, self.stride, strict=True)),
                )

    def parts(self, channels: int, filters: int):
        """Yield the input channels and the filters of each group."""
        c, k = channels // self.groups, filters // self.groups
        for group in range(self.groups):
            yield slice(group * c, (group + 1) * c), slice(group * k, (group + 1) * k)

    def forward(self, a: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = self.pad(a)
        out = np.zeros((len(a), len(w), *self.output_size(padded)))
        for r, s, rows, columns in self.taps(padded):
            for c, k in self.parts(a.shape[1], len(w)):
                out[:, k] += np.einsum("nchw,kc->nkhw", padded[:, c, rows, columns], w[k, :, r, s])
        return out

    def grad_input(self, g: np.ndarray, w: np.ndarray, a: np.ndarray) -> np.ndarray:
        padded = np.zeros_like(self.pad(a))
        for r, s, rows, columns in self.taps(padded):
            for c, k in self.parts(a.shape[1], len(w)):
                padded[:, c, rows, columns] += np.einsum("nkhw,kc->nchw", g[:, k], w[k, :, r, s])
        return self.unpad(padded, *a.shape[2:])

    def grad_weight(self, g: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded, out = self.pad(a), np.zeros_like(w)
        for r, s, rows, columns in self.taps(padded):
            for c, k in self.parts(a.shape[1], len(w)):
                out[k, :, r, s] = np.einsum("nkhw,nchw->kc", g[:, k], padded[:, c, rows, columns])
        return out

    def grad_bias(self, g: np.ndarray) -> np.ndarray:
        return g.sum(axis=(0, 2, 3))


class FullyConnected:
    """The products of a linear layer; leading dimensions are one batch."""

    def forward(self, a: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.einsum("...c,kc->...k", a, w)

    def grad_input(self, g: np.ndarray, w: np.ndarray, a: np.ndarray) -> np.ndarray:
        return np.einsum("...k,kc->...c", g, w)

    def grad_weight(self, g: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nc->kc", g.reshape(-1, g.shape[-1]), a.reshape(-1, a.shape[-1]))

    def grad_bias(self, g: np.ndarray) -> np.ndarray:
        return g.reshape(-1, g.shape[-1]).sum(axis=0)


# ---- a layer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass of a layer gives."""

    output: np.ndarray
    grad_input: np.ndarray
    grad_weight: np.ndarray
    grad_bias: np.ndarray


def run(
    algorithm: str,
    products: Convolution | FullyConnected,
    a,
    w,
    bias,
    g,
    sparsity: float,
    scope: str = "nchw",
    given: dict[str, np.ndarray] | None = None,
) -> Pass:
    """Run one pass of `algorithm`; masks that are no function of the operands (R and M) are `given`."""
    a, w, g = array(a), array(w), array(g)
    operands = {"a": a, "w": w, "g": g}
    for name, values in operands.copy().items():
        matrix = values.reshape(-1, values.shape[-1]) if isinstance(products, FullyConnected) else values
        operands[f"T({name})"] = values * top_k(matrix, sparsity, scope).reshape(values.shape)
    for name, mask in (given or {}).items():  # such as "R(w)"
        operands[name] = operands[name[2]] * mask.reshape(operands[name[2]].shape)
    row = TABLE[algorithm]
    take = {product: tuple(operands[name] for name in names) for product, names in row.items()}
    output = products.forward(take["forward"][1], take["forward"][0])
    if bias is not None:
        output = output + (array(bias)[:, None, None] if isinstance(products, Convolution) else array(bias))
    if algorithm == "dsg":
        output = output * given["M(g)"].reshape(output.shape)  # type: ignore[index]
    gradient, weight = take["grad_input"]
    gradient_again, activation = take["grad_weight"]
    return Pass(
        output,
        products.grad_input(gradient, weight, a),
        products.grad_weight(gradient_again, activation, w),
        products.grad_bias(operands["M(g)"] if algorithm == "dsg" else g),
    )


# ---- comparing ---------------------------------------------------------------------------------------------


def check_close(actual, expected, relative: float = 1e-12) -> None:
    """Complain unless shapes agree and the error is small beside the largest entry expected."""
    actual, expected = array(actual), array(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    scale = max(np.abs(expected).max(initial=0.0), 1e-300)
    error = np.abs(actual - expected).max(initial=0.0) / scale
    assert error <= relative, f"relative error {error:.3g}, allowed {relative:.3g}"


def check_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Complain unless dtype, shape and every bit agree (so that -0 is not 0)."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    different = actual.contiguous().view(bits) != expected.contiguous().view(bits)
    assert not different.any(), f"{int(different.sum())} of {different.numel()} entries differ"


def check_mask(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Complain unless `actual` is a bool tensor with exactly the `expected` entries."""
    assert actual.dtype == torch.bool and tuple(actual.shape) == expected.shape
    different = int((actual.cpu().numpy() != expected).sum())
    assert different == 0, f"{different} of {expected.size} entries of the mask differ"
