"""Sparse Conv2d and Linear: one autograd function with slots for the operands of the three products.

A sparse layer is its dense class with one more attribute, `sparse`, that says which operands are selected
and how. Its gradients are deliberately not derivatives of its output: they are the straight-through
estimate of the paper, with the operands of each product selected as the row of `torchswat.algorithms`
says. The optimizer updates the dense weight with a dense gradient; bias and its gradient stay dense.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchswat.algorithms import Algorithm
from torchswat.engine import kept, plan
from torchswat.engine.batch_norm import RecomputeInfo
from torchswat.engine.loader import native_for
from torchswat.engine.ops import is_inner
from torchswat.engine.packed import ALL_DENSE, PackedConv2dProducts, Shape
from torchswat.engine.packed_linear import PackedLinearProducts
from torchswat.engine.products import Conv2dProducts, Form, LinearProducts, Products
from torchswat.engine.topk import SMALLEST, Marks, Selection, count_kept
from torchswat.errors import InvalidValue
from torchswat.projection import predicted_mask
from torchswat.selection import Selector, check_sparsity

Schedule = Callable[[int], float]
"""Sparsity as a function of the iteration (the number of training forwards so far)."""


@dataclass(frozen=True)
class Saved:
    """An operand as it waits for the backward pass.

    Attributes
    ----------
    tensors : tuple of Tensor
        A form that a product takes, or what that is made from where it takes less memory.
    make : callable or None
        Makes the form from the tensors; None where they are it.
    """

    tensors: Form = ()
    make: Callable[[Form], Form] | None = None

    @classmethod
    def of(cls, tensor: Tensor, selection: Selection) -> Saved:
        """Keep what is selected of a dense tensor as values and bits."""
        dense = _like(tensor)
        return cls(kept.keep(tensor, selection), lambda form: (kept.restore((form[0], form[1]), dense()),))


@dataclass(frozen=True)
class Operands:
    """The selected operands of one pass, each in the form that its product takes.

    Attributes
    ----------
    forward_weight : tuple of Tensor
        The weight of the forward product.
    forward_activation : Tensor or None
        The activation of the forward product where it is not the input itself.
    grad_input_weight, grad_weight_activation : Saved
        What is kept for the backward pass; nothing where no gradient is wanted.
    output_mask : Tensor or None
        The outputs that are kept (DSG).
    """

    forward_weight: Form
    forward_activation: Tensor | None = None
    grad_input_weight: Saved = Saved()
    grad_weight_activation: Saved = Saved()
    output_mask: Tensor | None = None


NOT_ZERO = Selection(limit=SMALLEST)
"""What is left where something was selected before."""

GradientSelections = Callable[[Tensor], tuple[Selection | None, Selection | None]]


def _kept(tensor: Tensor, selection: Selection | None) -> Tensor:
    return tensor if selection is None else selection.kept(tensor)


class SparseProducts(torch.autograd.Function):
    """The three products with their operands selected; see `torchswat.algorithms`."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        products: Products,
        operands: Operands,
        gradient_selections: GradientSelections | None,
    ) -> Tensor:
        ctx.products, ctx.gradient_selections = products, gradient_selections
        ctx.like = _like(activation), _like(weight)
        weight_saved, activation_saved = operands.grad_input_weight, operands.grad_weight_activation
        ctx.weight_tensors = len(weight_saved.tensors)
        # what the node itself holds would live as long as the graph; autograd frees what it was given to save
        ctx.makes = weight_saved.make, activation_saved.make
        ctx.packs = products.packs_weights and weight_saved.make is not None
        ctx.save_for_backward(operands.output_mask, *weight_saved.tensors, *activation_saved.tensors)
        if operands.forward_activation is not None:
            activation = operands.forward_activation
        output = products.forward(activation, operands.forward_weight, bias)
        return output if operands.output_mask is None else Selection(operands.output_mask).kept(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        output_mask, *tensors = ctx.saved_tensors
        products: Products = ctx.products
        make_weight, make_activation = ctx.makes
        if output_mask is not None:
            gradient = Selection(output_mask).kept(gradient)
        for_input, for_weight = ctx.gradient_selections(gradient) if ctx.gradient_selections else (None, None)
        like_activation, like_weight = ctx.like
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:  # first: what it needs beside the gradient is gone when grad_input comes
            activation = tuple(tensors[ctx.weight_tensors :])
            activation = make_activation(activation) if make_activation else activation
            grad_weight = products.grad_weight(_kept(gradient, for_weight), activation, like_weight())
            del activation
        if ctx.needs_input_grad[0]:
            weight = tuple(tensors[: ctx.weight_tensors])
            weight = make_weight(weight) if make_weight else weight
            if ctx.packs:
                weight = products.grad_input_weight(weight[0], NOT_ZERO)
            grad_input = products.grad_input(_kept(gradient, for_input), weight, like_activation())
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(products.bias_dims)
        return grad_input, grad_weight, grad_bias, None, None, None


def _like(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a maker of an uninitialised tensor of that shape and strides; no memory is held until then."""
    size, stride, options = tensor.size(), tensor.stride(), {"dtype": tensor.dtype, "device": tensor.device}
    return lambda: torch.empty_strided(size, stride, **options)


def _saved_activation(
    products: Products, input: Tensor, selection: Selection | None, recompute: RecomputeInfo | None
) -> Saved:
    """Return the input as it is saved for the weight's gradient, and fill the marks of its selection."""
    if recompute is not None and products.compresses and selection is not None and selection.mask is None:
        if selection.marks is not None and selection.count is None:
            found = count_kept(input, selection.limit)
            assert found is not None, "what can be recomputed is of the compiled kernels"
            selection.marks.count = found.greater + found.equal
            selection.marks.not_a_number = found.not_a_number

        def compressed(tensors: Form) -> Form:
            x, scale, shift = tensors
            return products.grad_weight_activation_again(x, scale, shift, selection)

        return Saved(tuple(recompute), compressed)
    values, *positions = products.grad_weight_activation(input, selection)
    if selection is None or positions:
        return Saved((values, *positions))
    return Saved.of(values, NOT_ZERO)


# ---- the layers --------------------------------------------------------------------------------------------


def _inside_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _never_compiled(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Let `torch.compile` break its graph here: there is state in Python, and sizes depend on data."""

    @functools.wraps(forward)
    def eager(self: Any, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # only then: asking for it imports the whole compiler
            disabled: Any = torch.compiler.disable(forward)
            return disabled(self, input)
        return forward(self, input)

    return eager


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
    output_density : Tensor or None
        The share of outputs that the last forward kept (DSG).
    """

    algorithm: Algorithm
    sparsity: float | Schedule
    selectors: dict[str, Selector]
    name: str = "layer"
    iteration: int = 0
    output_density: Tensor | None = None
    _weight_selection: Selection | None = field(default=None, repr=False)
    _weight_mask: Tensor | None = field(default=None, repr=False)
    _weight_seen: tuple | None = field(default=None, repr=False)

    @property
    def weight_mask(self) -> Tensor | None:
        """The last mask of the weight, as it was when it was selected from."""
        selection, seen = self._weight_selection, self._weight_seen
        if self._weight_mask is None and selection is not None and selection.marks and seen is not None:
            self._weight_mask = selection.marks.mask(seen[0])
        return self._weight_mask

    def sparsity_now(self, iteration: int) -> float:
        """Return the sparsity in force at `iteration`."""
        if callable(self.sparsity):
            return check_sparsity(self.sparsity(iteration), f"the scheduled sparsity of layer {self.name!r}")
        return self.sparsity

    def this_iteration(self, training: bool) -> int:
        """Return the number of the pass that is due.

        A recomputation for a backward pass belongs to the last one of training, and so does an evaluation: it
        then selects as `prune_` does.
        """
        return self.iteration if training and not _inside_backward() else max(0, self.iteration - 1)

    def next_iteration(self, training: bool) -> int:
        """Return the number of the pass that is due, and count it where it is a new one of training."""
        iteration = self.this_iteration(training)
        if training and not _inside_backward():
            self.iteration += 1
        return iteration

    def selector(self, operand: str, training: bool) -> Selector:
        """Return the selector of `operand`; outside training a copy, which leaves its threshold alone."""
        selector = self.selectors[operand]
        return selector if training else copy.copy(selector)

    def select_weight(
        self, weight: Tensor, sparsity: float, iteration: int, training: bool, marked: bool = False
    ) -> Selection:
        """Return the selection of the weight.

        Every pass selects anew, for a weight that was changed through ``.data`` shows no sign of it; but a
        recomputation inside a backward pass takes the last one. An evaluation moves no threshold.
        Where the weight is to be `marked` by who reads it next, counting, looking for NaN and the mask, which
        is rarely asked for, are left to that; `weight_marked` must follow.
        """
        selector, selection, mask = self.selector("weight", training), self._weight_selection, None
        seen = (weight.shape, weight.data_ptr(), weight._version, weight.device, sparsity, iteration)
        same = _inside_backward() and seen == self._weight_seen
        if selection is None or selector.random or not same:
            name = f"the weight of layer {self.name!r}"
            selection = selector.select(weight, sparsity, iteration, name, lean=marked)
            if selection.marks and selection.limit <= SMALLEST:  # zeros may be among the k largest
                selection = selector.select(weight, sparsity, iteration, name)
            if not selection.marks:
                mask = selection.mask_of(weight)
            # published at once: another thread may be in the same layer
            self._weight_selection, self._weight_mask, self._weight_seen = selection, mask, seen
            self.selectors["weight"].density = selector.density
        return selection

    def weight_marked(self, marks: Marks, entries: int) -> None:
        """Finish a selection of the weight that was to be marked."""
        if marks.not_a_number:
            self.forget_weight()
        self.selectors["weight"].counted(marks, entries, f"the weight of layer {self.name!r}")

    def forget_weight(self) -> None:
        """Drop the last selection of the weight."""
        self._weight_mask = self._weight_selection = self._weight_seen = None

    def forget(self) -> None:
        """Drop what was learnt from weights that are being replaced."""
        self.forget_weight()
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
        self.forget_weight()
        for operand, selector in self.selectors.items():
            prefix = f"{operand}."
            selector.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class SparseLayer(nn.Module):
    """What the sparse layers share: from the input to the selected operands, then the three products."""

    sparse: LayerSparsity

    def _sparse_forward(
        self,
        input: Tensor,
        products: Products,
        pad: Callable[[Tensor], Tensor] | None,
        dense: Any,
        recompute: RecomputeInfo | None = None,
    ) -> Tensor:
        """Run one pass; selections are made on `input` before `pad`, `dense` is the dense class's pass."""
        sparse, row = self.sparse, self.sparse.algorithm
        iteration = sparse.next_iteration(self.training)
        sparsity = sparse.sparsity_now(iteration)
        if sparsity == 0:
            sparse.forget_weight()
            return dense(input)
        given = input
        input, weight, bias = (
            products.adapt(input),
            cast(Tensor, self.weight),
            cast("Tensor | None", self.bias),
        )
        grad = torch.is_grad_enabled()
        wanted = grad and input.requires_grad, grad and weight.requires_grad
        of_input, of_weight = self._selections(products, input, wanted, sparsity, iteration)
        if pad is not None:
            if of_input is not None:
                of_input = Selection(pad(of_input.mask_of(input).to(input.dtype)) != 0)
            input = pad(input)
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
            # autocast does not reach into autograd functions; masks are of the values before they are rounded
            of_input = None if of_input is None else Selection(of_input.mask_of(input))
            of_weight = None if of_weight is None else Selection(of_weight.mask_of(weight))
            dtype = torch.get_autocast_dtype(device)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            if input is not given:  # it was laid out anew, padded or rounded
                recompute = None
            operands = self._operands(
                products, input, weight, of_input, of_weight, wanted, sparsity, recompute
            )
            of_gradient = self._gradient_selections(sparsity, iteration) if row.selects("gradient") else None
            output = SparseProducts.apply(input, weight, bias, products, operands, of_gradient)
        assert isinstance(output, Tensor)
        if operands.output_mask is not None:  # for DSG's second mask, behind batch norm
            output.torchswat_mask = operands.output_mask  # type: ignore[attr-defined]
        return output

    def _engine_sparsity(self, input: Tensor) -> float:
        """Return the sparsity of this pass where the compiled engine can do its products, else 0."""
        sparse = self.sparse
        usable = sparse.algorithm.is_packable and input.numel() > 0
        if not usable or torch.is_autocast_enabled(input.device.type):
            return 0
        if native_for(input, cast(Tensor, self.weight)) is None:
            return 0
        return sparse.sparsity_now(sparse.this_iteration(self.training))

    def _selections(
        self,
        products: Products,
        input: Tensor,
        wanted: tuple[bool, bool],
        sparsity: float,
        iteration: int,
    ) -> tuple[Selection | None, Selection | None]:
        """Select from the input and the weight where the algorithm and the wanted gradients need it."""
        sparse, row = self.sparse, self.sparse.algorithm
        to_input, to_weight = wanted
        of_input = of_weight = None
        if row.forward_activation or (row.grad_weight_activation and to_weight):
            selector = sparse.selector("activation", self.training)
            name = f"the input of layer {sparse.name!r}"
            of_input = selector.select(input, sparsity, iteration, name, lean=products.compresses)
        if row.forward_weight or (row.grad_input_weight and (to_input or to_weight)):
            marked = bool(row.forward_weight) and products.marks_weight
            of_weight = sparse.select_weight(
                cast(Tensor, self.weight), sparsity, iteration, self.training, marked
            )
        return of_input, of_weight

    def _gradient_selections(self, sparsity: float, iteration: int) -> GradientSelections:
        sparse, row = self.sparse, self.sparse.algorithm
        selector = sparse.selector("gradient", self.training)

        def select(gradient: Tensor) -> tuple[Selection | None, Selection | None]:
            name = f"the output gradient of layer {sparse.name!r}"
            selection = selector.select(gradient, sparsity, iteration, name)
            return (
                selection if row.grad_input_gradient else None,
                selection if row.grad_weight_gradient else None,
            )

        return select

    @torch.no_grad()
    def _operands(
        self,
        products: Products,
        input: Tensor,
        weight: Tensor,
        of_input: Selection | None,
        of_weight: Selection | None,
        wanted: tuple[bool, bool],
        sparsity: float,
        recompute: RecomputeInfo | None = None,
    ) -> Operands:
        """Bring the operands into the forms that the products take, and measure what they hold."""
        sparse, row = self.sparse, self.sparse.algorithm
        to_input, to_weight = wanted
        forward_weight = products.forward_weight(weight, of_weight if row.forward_weight else None)
        if of_weight is not None and of_weight.marks:
            sparse.weight_marked(of_weight.marks, weight.numel())
        grad_input_weight = grad_weight_activation = Saved()
        if to_input:
            selection = of_weight if row.grad_input_weight else None
            grad_input_weight = Saved((weight,)) if selection is None else Saved.of(weight, selection)
        if to_weight:
            selection = of_input if row.grad_weight_activation else None
            grad_weight_activation = _saved_activation(products, input, selection, recompute)
            if selection is not None and selection.marks:
                name = f"the input of layer {sparse.name!r}"
                sparse.selectors["activation"].counted(selection.marks, input.numel(), name)
        output_mask = None
        if row.projected_output:
            output_mask = predicted_mask(products, input, weight, sparsity, sparse.name)
            sparse.output_density = output_mask.count_nonzero() / output_mask.numel()
        forward_input = of_input.kept(input) if of_input is not None and row.forward_activation else None
        return Operands(forward_weight, forward_input, grad_input_weight, grad_weight_activation, output_mask)

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

    @_never_compiled
    def forward(self, input: Tensor) -> Tensor:  # input  # (N, C, H, W) or (C, H, W)
        return self.forward_recomputing(input, None)

    def forward_recomputing(self, input: Tensor, recompute: RecomputeInfo | None) -> Tensor:
        """Return what `forward` does, saving nothing of an `input` that `recompute` recomputes."""
        channels = input.shape[-3] if input.dim() in (3, 4) else None
        if channels != self.in_channels:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W)."
            )
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        sides = self._reversed_padding_repeated_twice  # (left, right, top, bottom)
        padded, kernel = self._extents(input)
        if padded[0] < kernel[0] or padded[1] < kernel[1]:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}, with padding "
                f"{padded[0]} x {padded[1]}; its kernel needs {kernel[0]} x {kernel[1]} at least."
            )
        padding = self._product_padding()
        products = None if padding is None else self._products(input, padding)
        if products is None:
            geometry: Any = self.stride, padding or (0, 0), self.dilation, self.groups
            products = Conv2dProducts(*geometry)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode

        def pad(tensor: Tensor) -> Tensor:
            return F.pad(tensor, sides, mode=mode)

        return self._sparse_forward(
            input, products, pad if padding is None else None, super().forward, recompute
        )

    def takes_inner(self, input: Tensor) -> bool:
        """Tell whether an `input` (N, C, H, W) of these sizes is brought into the engine's layout here."""
        (height, width), kernel = self._extents(input)
        fits = input.shape[1] == self.in_channels and height >= kernel[0] and width >= kernel[1]
        padding = self._product_padding()
        if not fits or padding is None:
            return False
        return isinstance(self._products(input, padding), PackedConv2dProducts)

    def _extents(self, input: Tensor) -> tuple[tuple[int, int], list[int]]:
        """Return height and width of the padded `input` and of the dilated kernel."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        kernel = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return (input.shape[2] + top + bottom, input.shape[3] + left + right), kernel

    def _product_padding(self) -> tuple[int, int] | None:
        """Return the padding that the products do, or None where the input is to be padded before."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        symmetric = left == right and top == bottom
        return (top, left) if self.padding_mode == "zeros" and symmetric else None

    def _products(self, input: Tensor, padding: tuple[int, int]) -> Products | None:
        """Return the products of the compiled engine, or None where it does not do these."""
        sparsity = self._engine_sparsity(input) if self.groups == 1 and self.dilation == (1, 1) else 0
        if sparsity == 0:
            return None
        shape = Shape(
            tuple(input.shape),  # type: ignore[arg-type]
            tuple(self.weight.shape),  # type: ignore[arg-type]
            cast("tuple[int, int]", self.stride),
            padding,
        )
        return plan.products_for(shape, sparsity, is_inner(input))


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

    @_never_compiled
    def forward(self, input: Tensor) -> Tensor:  # input  # (*, in_features)
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (*, {self.in_features})."
            )
        matrix = input.reshape(-1, self.in_features)
        output = self._sparse_forward(matrix, self._products(matrix), None, super().forward)
        return output if input.dim() == 2 else output.reshape(*input.shape[:-1], self.out_features)

    def _products(self, matrix: Tensor) -> Products:
        """Return the products of the compiled engine where it does these, else those of torch."""
        sparsity = self._engine_sparsity(matrix)
        if sparsity == 0:
            return LinearProducts()
        sizes = (*matrix.shape, 1, 1), (*self.weight.shape, 1, 1)
        shape = Shape(*sizes, (1, 1), (0, 0))  # type: ignore[arg-type]
        convolution = plan.products_for(shape, sparsity)
        if not isinstance(convolution, PackedConv2dProducts) or convolution.choice == ALL_DENSE:
            return LinearProducts()
        return PackedLinearProducts(convolution)


SPARSE_CLASSES: dict[type[nn.Module], type[SparseLayer]] = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}
"""Which dense class becomes which sparse one."""
