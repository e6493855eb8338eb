"""Sparse Conv2d and Linear: one autograd function with slots for the operands of the three products.

A sparse layer is its dense class with one more attribute, `sparse`, that says which operands are selected
and how. Its gradients are deliberately not derivatives of its output: they are the straight-through
estimate of the paper, with the operands of each product selected as the row of `torchswat.algorithms`
says. The optimizer updates the dense weight with a dense gradient; bias and its gradient stay dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchswat.algorithms import Algorithm
from torchswat.engine.products import Conv2dProducts, LinearProducts, Products
from torchswat.errors import InvalidValue
from torchswat.projection import predicted_mask
from torchswat.selection import Selector, check_sparsity

Schedule = Callable[[int], float]
"""Sparsity as a function of the iteration (the number of training forwards so far)."""


def kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Return `tensor` with zeros where `mask` is False (an infinity there becomes zero as well)."""
    return tensor if mask is None else torch.where(mask, tensor, tensor.new_zeros(()))


@dataclass(frozen=True)
class Masks:
    """The masks of one forward pass by slot; None leaves the operand dense."""

    forward_weight: Tensor | None = None
    forward_activation: Tensor | None = None
    grad_input_weight: Tensor | None = None
    grad_weight_activation: Tensor | None = None
    output: Tensor | None = None


class SparseProducts(torch.autograd.Function):
    """The three products with their operands selected; see `torchswat.algorithms`."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        products: Products,
        masks: Masks,
        gradient_masks: Callable[[Tensor], tuple[Tensor | None, Tensor | None]] | None,
    ) -> Tensor:
        forward_weight = kept(weight, masks.forward_weight)
        output = products.forward(kept(activation, masks.forward_activation), forward_weight, bias)
        same_mask = masks.grad_input_weight is masks.forward_weight
        ctx.save_for_backward(
            kept(activation, masks.grad_weight_activation) if ctx.needs_input_grad[1] else None,
            forward_weight if same_mask else kept(weight, masks.grad_input_weight),
            masks.output,
        )
        ctx.like = _like(activation), _like(weight)
        ctx.products, ctx.gradient_masks = products, gradient_masks
        return kept(output, masks.output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        activation, weight, output_mask = ctx.saved_tensors
        like_activation, like_weight = (empty() for empty in ctx.like)
        products: Products = ctx.products
        gradient = kept(gradient, output_mask)
        for_input, for_weight = ctx.gradient_masks(gradient) if ctx.gradient_masks else (None, None)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and for_input is for_weight:
            grad_input, grad_weight = products.grads(kept(gradient, for_input), activation, weight)
        else:
            if ctx.needs_input_grad[0]:
                grad_input = products.grad_input(kept(gradient, for_input), weight, like_activation)
            if ctx.needs_input_grad[1]:
                grad_weight = products.grad_weight(kept(gradient, for_weight), activation, like_weight)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(products.bias_dims())
        return grad_input, grad_weight, grad_bias, None, None, None


def _like(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a maker of an uninitialised tensor of that shape and strides; no memory is held until then."""
    size, stride, options = tensor.size(), tensor.stride(), {"dtype": tensor.dtype, "device": tensor.device}
    return lambda: torch.empty_strided(size, stride, **options)


# ---- the layers --------------------------------------------------------------------------------------------


@dataclass
class LayerSparsity:
    """What a sparse layer knows beyond its parameters: its settings, and the state of its selections.

    Attributes
    ----------
    algorithm : Algorithm
        The row of the table.
    sparsity : float or callable
        Of this layer; a callable is a schedule over iterations.
    selectors : dict of str to Selector
        By operand: ``weight``, ``activation``, ``gradient``.
    name : str
        The layer's name in its model, for messages.
    iteration : int
        Training forwards so far. A forward that runs inside a backward pass (gradient checkpointing) is the
        same iteration again.
    weight_mask : Tensor or None
        The last mask of the weight.
    output_density : Tensor or None
        The share of outputs that the last forward kept (DSG).
    """

    algorithm: Algorithm
    sparsity: float | Schedule
    selectors: dict[str, Selector]
    name: str = "layer"
    iteration: int = 0
    weight_mask: Tensor | None = field(default=None, repr=False)
    output_density: Tensor | None = None
    _weight_seen: tuple | None = field(default=None, repr=False)

    def sparsity_now(self, iteration: int) -> float:
        """Return the sparsity in force at `iteration`."""
        if callable(self.sparsity):
            return check_sparsity(self.sparsity(iteration), f"the scheduled sparsity of layer {self.name!r}")
        return self.sparsity

    def next_iteration(self, training: bool) -> int:
        """Return the number of this iteration and count it, where it is one of training."""
        if not training:
            return self.iteration
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass: a recomputation
            return max(0, self.iteration - 1)
        self.iteration += 1
        return self.iteration - 1

    def mask_weight(self, weight: Tensor, sparsity: float, iteration: int) -> Tensor:
        """Return the mask of the weight: the last one where nothing it depends on has changed."""
        selector = self.selectors["weight"]
        seen = (
            weight.data_ptr(),
            weight._version,
            weight.device,
            sparsity,
            selector.period > 1 and iteration,
        )
        if self.weight_mask is None or selector.random or seen != self._weight_seen:
            self.weight_mask = selector(weight, sparsity, iteration, f"the weight of layer {self.name!r}")
            self._weight_seen = seen
        return self.weight_mask

    def forget(self) -> None:
        """Drop what was learnt from weights that are being replaced."""
        self.weight_mask = self._weight_seen = None
        for selector in self.selectors.values():
            selector.threshold = None

    def state(self) -> dict[str, Tensor]:
        """Return counters and thresholds as tensors, for a resumed training."""
        state = {"iteration": torch.tensor(self.iteration)}
        for operand, selector in self.selectors.items():
            state.update({f"{operand}.{key}": value for key, value in selector.state().items()})
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.iteration = int(state["iteration"])
        self.weight_mask = self._weight_seen = None
        for operand, selector in self.selectors.items():
            prefix = f"{operand}."
            selector.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class SparseLayer(nn.Module):
    """What the sparse layers share: from the input to the masks of one pass, then the three products."""

    sparse: LayerSparsity

    def _sparse_forward(
        self, input: Tensor, products: Products, pad: Callable[[Tensor], Tensor] | None, dense: Any
    ) -> Tensor:
        """Run one pass; selections are made on `input` before `pad`, `dense` is the dense class's pass."""
        sparse, row = self.sparse, self.sparse.algorithm
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        iteration = sparse.next_iteration(self.training)
        sparsity = sparse.sparsity_now(iteration)
        if sparsity == 0:
            sparse.weight_mask = None
            return dense(input)
        backward = torch.is_grad_enabled()
        input_backward = backward and input.requires_grad
        weight_backward = backward and weight.requires_grad

        def weight_mask() -> Tensor:
            return sparse.mask_weight(weight, sparsity, iteration)

        def activation_mask() -> Tensor:
            name = f"the input of layer {sparse.name!r}"
            return sparse.selectors["activation"](input, sparsity, iteration, name)

        def gradient_masks(gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
            name = f"the output gradient of layer {sparse.name!r}"
            mask = sparse.selectors["gradient"](gradient, sparsity, iteration, name)
            return mask if row.grad_input_gradient else None, mask if row.grad_weight_gradient else None

        activation = activation_mask() if row.forward_activation else None
        if row.grad_weight_activation and weight_backward and activation is None:
            activation = activation_mask()
        padded, padded_mask = input, activation
        if pad is not None:
            padded = pad(input)
            padded_mask = None if activation is None else pad(activation.to(input.dtype)) != 0
        output_mask = None
        if row.projected_output:
            output_mask = predicted_mask(products, padded, weight, sparsity, sparse.name)
            sparse.output_density = output_mask.sum() / output_mask.numel()
        masks = Masks(
            forward_weight=weight_mask() if row.forward_weight else None,
            forward_activation=padded_mask if row.forward_activation else None,
            grad_input_weight=weight_mask()
            if row.grad_input_weight and (input_backward or weight_backward)
            else None,
            grad_weight_activation=padded_mask if row.grad_weight_activation else None,
            output=output_mask,
        )
        return self._apply(
            padded, weight, bias, products, masks, gradient_masks if row.selects("gradient") else None
        )

    def _apply(self, padded, weight, bias, products, masks, gradient_masks) -> Tensor:
        device = padded.device.type
        if torch.is_autocast_enabled(device):  # autograd functions are not cast by autocast
            dtype = torch.get_autocast_dtype(device)
            padded, weight, bias = (None if t is None else t.to(dtype) for t in (padded, weight, bias))
        with torch.autocast(device, enabled=False):
            output = SparseProducts.apply(padded, weight, bias, products, masks, gradient_masks)
        assert isinstance(output, Tensor)
        if masks.output is not None:
            output.torchswat_mask = masks.output  # type: ignore[attr-defined]  # for DSG's second mask, behind batch norm
        return output

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.sparse.forget()


class SparseConv2d(SparseLayer, nn.Conv2d):
    """A Conv2d whose products run on selected operands; made by `torchswat.sparsify_`.

    Input and output are those of `torch.nn.Conv2d`. What was saved for the backward pass is freed by it, and
    a second derivative is refused with an error.

    Raises
    ------
    InvalidValue
        For an input of the wrong shape, naming the layer.
    NotFinite
        Where a tensor to select from has a NaN, naming the layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # input  # (N, C, H, W) or (C, H, W)
        channels = input.shape[-3] if input.dim() in (3, 4) else None
        if channels != self.in_channels:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W)."
            )
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        sides = self._reversed_padding_repeated_twice  # (left, right, top, bottom)
        symmetric = sides[0] == sides[1] and sides[2] == sides[3]
        in_product = self.padding_mode == "zeros" and symmetric
        products = Conv2dProducts(
            cast("tuple[int, int]", self.stride),
            (sides[2], sides[0]) if in_product else (0, 0),
            cast("tuple[int, int]", self.dilation),
            self.groups,
        )
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode

        def pad(tensor: Tensor) -> Tensor:
            return F.pad(tensor, sides, mode=mode)

        return self._sparse_forward(input, products, None if in_product else pad, super().forward)


class SparseLinear(SparseLayer, nn.Linear):
    """A Linear whose products run on selected operands; made by `torchswat.sparsify_`.

    Input and output are those of `torch.nn.Linear`; leading dimensions are one batch to the selection.

    Raises
    ------
    InvalidValue
        For an input of the wrong shape, naming the layer.
    NotFinite
        Where a tensor to select from has a NaN, naming the layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # input  # (*, in_features)
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (*, {self.in_features})."
            )
        matrix = input.reshape(-1, self.in_features)
        output = self._sparse_forward(matrix, LinearProducts(), None, super().forward)
        return output if input.dim() == 2 else output.reshape(*input.shape[:-1], self.out_features)


SPARSE_CLASSES: dict[type[nn.Module], type[SparseLayer]] = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}
"""Which dense class becomes which sparse one."""
