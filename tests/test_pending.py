"""A batch norm that waits for what reads it: whatever a pass does, its numbers are those of plain torch."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from torchswat.concatenation import Part
from torchswat.engine import ops
from torchswat.neighbours import NeighbourBatchNorm2d, join_
from torchswat.pending import Pending, settled


class Block(nn.Module):
    """Batch norm, the sum with the input, ReLU; as a trace of it shows, and no detour until one is set."""

    detour: Callable[[Block, Tensor], Tensor] | None = None
    sums = True

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.norm, self.relu, self.sums = nn.BatchNorm2d(4), nn.ReLU(), sums
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.to_inner(x)
        if self.detour is not None:
            return self.detour(x)
        y = self.norm(x)
        if self.sums:
            y = y + x
        return self.relu(y)


class Threefold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 3


def changed_in_place(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    y -= 0.5
    return m.relu(y)


def changed_under_another_name(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    z = y
    y += x
    return m.relu(z)


def read_before_and_after(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    before = y.mean()
    z = m.relu(y)
    return z + y * before


def read_after_the_sum(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.relu(y + x) + y


def rectified_in_place(m: Block, x: Tensor) -> Tensor:
    y, relu = m.norm(x), m.relu
    relu.inplace = True
    relu(y)
    relu.inplace = False
    return y * 2


def of_a_part(m: Block, x: Tensor) -> Tensor:
    return torch.stack([m.relu(row) for row in m.norm(x)])


def wider_residual(m: Block, x: Tensor) -> Tensor:
    return m.relu(m.norm(x) + x[:, :1])


def without_gradient(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        short = m.norm(x)
    return m.relu(short + x)


def summed_without_gradient(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    with torch.no_grad():
        added = y + x
    return m.relu(y) + added


def rectified_without_gradient(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    with torch.no_grad():
        z = m.relu(y)
    return z + y


def read_by_two_functions(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    return Threefold.apply(y) + m.relu(y) + y * 2


def first_read_in_inference_mode(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    with torch.inference_mode():
        y.mean()
    return m.relu(y) + x


def added_to_a_part(m: Block, x: Tensor) -> Tensor:
    return ops.to_inner(x * 1.0).as_subclass(Part) + m.norm(x)


def sum_read_by_a_function(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x)
    y += x
    return Threefold.apply(y) + m.relu(y + x)


DETOURS = {
    "no relu": lambda m, x: m.norm(x),
    "another function": lambda m, x: torch.tanh(m.norm(x)),
    "a number": lambda m, x: m.relu(m.norm(x) + 1.0),
    "a number of a tensor": lambda m, x: m.relu(m.norm(x) + x.mean().item()),
    "a factor": lambda m, x: m.relu(torch.add(m.norm(x), x, alpha=2)),
    "from the right": lambda m, x: m.relu(x + m.norm(x)),
    "itself": lambda m, x: (lambda y: m.relu(y + y))(m.norm(x)),
    "two of them": lambda m, x: m.relu(m.norm(x) + m.norm(x * x)),
    "into a sum": lambda m, x: (x.clone().add_(m.norm(x)), m.relu(m.norm(x)))[1],
    "concatenated": lambda m, x: torch.cat([m.norm(x), x], 1),
    "a list": lambda m, x: torch.stack([m.norm(x), x]),
    "an autograd function": lambda m, x: Threefold.apply(m.norm(x)),
    "its sizes": lambda m, x: (lambda y: m.relu(y.view(y.shape)))(m.norm(x)),
    "two relus": lambda m, x: m.relu(m.relu(m.norm(x)) - 0.1),
    "changed in place": changed_in_place,
    "changed under another name": changed_under_another_name,
    "read before and after": read_before_and_after,
    "read after the sum": read_after_the_sum,
    "rectified in place": rectified_in_place,
    "of a part": of_a_part,
    "a wider residual": wider_residual,
    "without gradient": without_gradient,
    "summed without gradient": summed_without_gradient,
    "rectified without gradient": rectified_without_gradient,
    "read by two functions": read_by_two_functions,
    "first read in inference mode": first_read_in_inference_mode,
    "added to a part": added_to_a_part,
    "sum read by a function": sum_read_by_a_function,
}


def passes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return output, gradients and buffers of one pass."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y))
    found = {"output": y.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def check(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    for _ in range(2):
        actual, expected = passes(model, x), passes(plain, x.double())
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            reference.check_close(value, expected[name], 1e-5)


def pictures() -> Tensor:
    return 2 * torch.randn(6, 4, 5, 5) + 0.5


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("detour", DETOURS)
def test_a_pass_may_do_anything(detour, sums):
    """What was read off the model is a guess about its next pass."""
    model = Block(sums)
    plain = copy.deepcopy(model).double()
    join_(model)
    assert model.norm.rectifies and model.norm.awaits == sums
    check(model, plain, pictures())
    for one in (model, plain):
        one.detour = DETOURS[detour].__get__(one)
    check(model, plain, pictures())


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("where", ["norm", "relu"])
@pytest.mark.parametrize("sums", [False, True])
def test_hooks_see_what_they_would_see_of_plain_modules(kind, where, sums):
    model = Block(sums)
    plain = copy.deepcopy(model)
    join_(model)
    x, seen = pictures(), []
    for one in (model, plain):
        mine: list[Tensor] = []
        seen.append(mine)

        def hook(module: nn.Module, *tensors: object, mine: list[Tensor] = mine) -> None:
            mine += [
                t.detach().clone() for some in tensors for t in (some if isinstance(some, tuple) else [some])
            ]

        getattr(one.get_submodule(where), f"register_{kind}_hook")(hook)
        passes(one, x)
    assert seen[0] and len(seen[0]) == len(seen[1])
    for ours, theirs in zip(*seen, strict=True):
        assert type(ours) is Tensor
        reference.check_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", ["forward", "full_backward"])
def test_hooks_of_all_modules(kind):
    model = Block(True)
    plain = copy.deepcopy(model).double()
    join_(model)
    seen = []
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(
        lambda module, inputs, outputs: seen.extend(outputs if kind != "forward" else [outputs])
    )
    try:
        check(model, plain, pictures())
    finally:
        handle.remove()
    assert seen and all(isinstance(tensor, Tensor) for tensor in seen)


def test_flows_that_depend_on_the_mode():
    class Dependent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            y = self.norm(ops.to_inner(x))
            if self.training:
                y = y + 1.0
            if skip is not None:
                y = y + skip
            return self.relu(y)

    for training in (True, False):
        model = Dependent().train(training)
        plain = copy.deepcopy(model).double()
        join_(model)
        check(model.train(), plain.train(), pictures())


def test_a_part_of_a_sequential_and_what_was_put_into_it():
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Identity(), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body[:2](ops.to_inner(x)) if float(x.detach().sum()) > -1e9 else x

    model = Sliced()
    plain = copy.deepcopy(model).double()
    join_(model)
    check(model, plain, pictures())
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(4), nn.ReLU())
    plain = copy.deepcopy(model).double()
    join_(model)
    model[2], plain[2] = nn.Identity(), nn.Identity()
    check(model, plain, pictures())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_checkpointing_may_cut_anywhere(reentrant, segments):
    first, second = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4), nn.ReLU())
    plain = copy.deepcopy(model).double()
    join_(model)
    x, gradient, found = pictures(), torch.randn(6, 4, 5, 5), []
    for one, leaf in ((model, x), (plain, x.double())):
        leaf = leaf.clone().requires_grad_()
        checkpoint_sequential(one, segments, leaf, use_reentrant=reentrant).backward(gradient.to(leaf.dtype))
        found.append([leaf.grad, *(p.grad for p in one.parameters())])
    for ours, theirs in zip(*found, strict=True):
        reference.check_close(ours, theirs, 1e-4)


def test_what_leaves_a_checkpoint_is_a_tensor_like_any_other():
    model = Block(False)
    join_(model)
    x = pictures().requires_grad_()
    y = checkpoint(lambda t: model.norm(ops.to_inner(t)), x, use_reentrant=False)
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert x.grad is not None


def made(requires_grad: bool = True) -> tuple[NeighbourBatchNorm2d, Tensor, Pending]:
    model = Block(False)
    join_(model)
    x = ops.to_inner(pictures()).requires_grad_(requires_grad)
    return model.norm, x, model.norm(x)


def test_its_sizes_are_known_and_not_computed():
    norm, x, y = made()
    assert type(y) is Pending and isinstance(y, Tensor)
    assert (y.shape, y.dtype, y.device, y.dim(), len(y)) == (x.shape, x.dtype, x.device, 4, 6)
    assert y.size(1) == 4 and y.ndim == 4 and y.numel() == 600 and y.requires_grad and y.is_floating_point()
    assert int(norm.num_batches_tracked) == 0
    assert settled(y) is settled(y) and int(norm.num_batches_tracked) == 1


def test_copies_files_and_words_are_of_the_plain_tensor():
    _, _, y = made()
    torch.save(y.detach(), file := io.BytesIO())
    file.seek(0)
    assert torch.equal(torch.load(file), settled(y)) and "grad_fn" in repr(y)
    _, _, y = made()
    torch.save(y, file := io.BytesIO())
    file.seek(0)
    assert torch.equal(torch.load(file), settled(y))


def test_nothing_is_held_by_a_cycle():
    norm, x, y = made(requires_grad=False)
    inputs = weakref.ref(x)
    gc.disable()
    try:
        z = y.rectified(False)
        assert z is not None
        z.sum().backward()
        del x, y, z
        assert inputs() is None
    finally:
        gc.enable()
    del norm


def test_gradients_of_what_an_autograd_function_was_given():
    """By every way there is to ask for them, twice where the graph is kept."""
    for retain in (False, True):
        model = Block(False)
        plain = copy.deepcopy(model)
        join_(model)
        x, found = pictures(), []
        for one in (model, plain):
            leaf, parameters = x.clone().requires_grad_(), list(one.parameters())
            y = Threefold.apply(one.norm(ops.to_inner(leaf)))
            loss = (y * torch.linspace(0, 1, y.numel()).view(y.shape)).sum()
            if retain:
                loss.backward(inputs=parameters, retain_graph=True)
                found.append([p.grad.clone() for p in parameters])
            else:
                found.append([])
            found[-1] += torch.autograd.grad(loss, [leaf, *parameters])
        for ours, theirs in zip(*found, strict=True):
            reference.check_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("change", ["mul", "add", "relu"])
def test_a_function_that_was_given_what_was_changed_in_place_is_told(change):
    """Its gradient would be that of the unchanged output."""
    model = Block(True)
    join_(model)
    x = ops.to_inner(pictures())
    y = model.norm(x)
    if change == "mul":
        y.mul_(2)
    elif change == "add":
        z = y
        z += x
    else:
        model.relu.inplace = True
        model.relu(y)
    with pytest.raises(RuntimeError, match="was changed in place, and an autograd function read it"):
        Threefold.apply(y).sum().backward()


def test_a_backward_hook_on_a_part_that_ends_in_a_batch_norm():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.relu = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = ops.to_inner(x)
            return self.relu(self.main(x) + x)

    model = Skip()
    plain = copy.deepcopy(model).double()
    join_(model)
    for one in (model, plain):
        one.main.register_full_backward_hook(lambda *_: None)
    check(model, plain, pictures())


def test_the_parameters_are_those_of_the_moment_it_was_made():
    norm, x, y = made()
    with torch.no_grad():
        norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="the input or a parameter of a batch norm was changed"):
        y.relu()
    model = Block(False)
    plain = copy.deepcopy(model)
    join_(model)
    x, outputs, kept = ops.to_inner(pictures()), [], []
    for one in (model, plain):
        other = {name: t.detach().clone() + 1 for name, t in one.norm.state_dict().items()}
        other |= {name: t.requires_grad_() for name, t in other.items() if name in ("weight", "bias")}
        outputs.append(one.relu(torch.func.functional_call(one.norm, other, (x,))))
        kept.append((other["running_mean"], one.norm.running_mean, one.norm.num_batches_tracked))
    reference.check_close(*outputs, 1e-5)
    for ours, theirs in zip(*kept, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_operand_that_was_changed_before_it_was_read_is_told():
    _, x, y = made(requires_grad=False)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="the input or a parameter of a batch norm"):
        y.relu()
    model = Block(True)
    join_(model)
    x = ops.to_inner(pictures())
    residual = x.clone()
    total = model.norm(x) + residual
    residual.mul_(2)
    with pytest.raises(RuntimeError, match="what was added to the output"):
        model.relu(total)


def test_training_mode_without_gradients():
    for mode in (torch.no_grad, torch.inference_mode):
        model = Block(True)
        plain = copy.deepcopy(model).double()
        join_(model)
        x = pictures()
        with mode():
            ours, theirs = model(x), plain(x.double())
        reference.check_close(ours, theirs, 1e-5)
        reference.check_close(model.norm.running_var, plain.norm.running_var, 1e-5)
