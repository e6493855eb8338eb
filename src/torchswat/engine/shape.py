"""The sizes of a layer's products, and which of them run sparse."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which products run on sparse operands; the others run on dense ones with zeros."""

    forward: bool
    grad_input: bool
    grad_weight: bool


ALL_SPARSE, ALL_DENSE = Choice(True, True, True), Choice(False, False, False)


@dataclass(frozen=True)
class Shape:
    """The sizes of one convolution."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, ...]
    """Of height and width, or top, left, bottom and right (`torchswat.engine.dense`)."""
    narrow: bool = False
    """Whether activations and gradients are bfloat16 instead of float32."""
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        n, c, h, w = self.input
        k, _, r, s = self.weight
        stride, padding, dilation = (
            "".join(map(str, sides)) for sides in (self.stride, self.padding, self.dilation)
        )
        gaps = f"-d{dilation}" if self.is_dilated else ""
        return f"{n}x{c}x{h}x{w}-{k}x{r}x{s}-s{stride}-p{padding}{gaps}{'-bf16' * self.narrow}"

    @property
    def is_dilated(self) -> bool:
        """Whether the taps of the kernel do not lie side by side."""
        return self.dilation != (1, 1)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the kernel with the gaps between its taps."""
        height, width = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight[2:], strict=True))
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a matrix product: a 1x1 kernel without padding."""
        return self.weight[2:] == (1, 1) and self.padding == (0, 0)


def shape_of(
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    groups: int = 1,
    narrow: bool = False,
) -> Shape:
    """Return the shape of a layer's products, or of those of each of its groups.

    A fully connected layer is a 1x1 convolution on maps of one position.

    Examples
    --------
    >>> str(shape_of((16, 8, 6, 6), (12, 4, 3, 3), (1, 1), (1, 1), (1, 1), groups=2))
    '16x4x6x6-6x3x3-s11-p11'
    """
    n, c, h, w = (*input_size, 1, 1)[:4]
    k, _, r, s = (*weight_size, 1, 1)[:4]
    c, k = c // groups, k // groups
    return Shape((n, c, h, w), (k, c, r, s), stride, padding, narrow, dilation)
