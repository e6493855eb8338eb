"""The exam that every row of `ALGORITHMS` takes; a new row inherits it."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

import torchswat
from torchswat.algorithms import ALGORITHMS, SLOTS, Algorithm, algorithm
from torchswat.convert import load_sparse_state_, sparse_layers, sparse_state
from torchswat.engine.loader import native
from torchswat.errors import NotFinite, UnknownName
from torchswat.layers import SPARSE_CLASSES
from torchswat.selection import SCOPES, Selector

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_sparse_algorithm = pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "dense"])


@pytest.fixture
def selections(monkeypatch) -> list[tuple[str, Tensor, Tensor]]:
    """Every selection outside of an operation as it happens: its name in messages, the tensor, the mask."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    select = Selector.__call__

    def recorded(self, tensor, sparsity, iteration, name="tensor", remember=True):
        mask = select(self, tensor, sparsity, iteration, name, remember)
        seen.append((name, tensor.detach().clone(), mask))
        return mask

    monkeypatch.setattr(Selector, "__call__", recorded)
    return seen


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 9, 10),
    )


def sparse_network(name: str, sparsity: float = 0.6, **settings) -> nn.Sequential:
    torch.manual_seed(3)
    return torchswat.sparsify_(network(), name, sparsity, **settings)


def train(model: nn.Module, steps: range, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Train a few steps, each on its own batch under its own seed; return the parameters at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        torch.manual_seed(step)
        images, labels = torch.randn(4, 3, 8, 8, dtype=dtype), torch.randint(10, (4,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def one_pass(layer: nn.Module, input: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return output and the gradients of input, weight and bias."""
    layer.zero_grad()
    input = input.detach().requires_grad_()
    output = layer(input)
    output.backward(gradient)
    assert input.grad is not None
    return [output.detach(), input.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


# ---- the table ---------------------------------------------------------------------------------------------


@every_algorithm
def test_the_row_says_what_the_paper_says(name):
    row, slots = reference.TABLE[name], ALGORITHMS[name].slots()
    kinds = {"T": "top-k", "R": "random"}
    operands = {"w": "weight", "a": "activation", "g": "gradient"}
    expected = dict.fromkeys(SLOTS)
    for product, names in row.items():
        for operand in names:
            if operand[0] in kinds:
                expected[f"{product}_{operands[operand[2]]}"] = kinds[operand[0]]
    assert slots == expected
    assert ALGORITHMS[name].projected_output == (name == "dsg")


@every_algorithm
def test_the_row_is_described(name):
    row = algorithm(name)
    assert row.name == name and row.summary and row.source


def test_the_algorithms_are_those_of_the_paper():
    assert list(ALGORITHMS) == list(reference.TABLE)


def test_an_unknown_algorithm_gets_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'meprop'"):
        algorithm("meProp")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "slots", [[slot for j, slot in enumerate(SLOTS) if i >> j & 1] for i in range(1, 64)], ids="+".join
)
def test_a_new_row_needs_nothing_else(slots, scope):
    """Any set of slots, also those of variants that the paper does not have."""
    row = Algorithm("mine", "-", "-", **dict.fromkeys(slots, "top-k"))
    layer = torchswat.sparsify_(nn.Linear(6, 5).double(), row, 0.5, scope)
    a, g = torch.randn(4, 6).double(), torch.randn(4, 5).double()
    output, grad_input, grad_weight, grad_bias = one_pass(layer, a, g)

    def used(tensor: Tensor, slot: str) -> np.ndarray:
        mask = reference.top_k(tensor, 0.5, scope) if slot in slots else 1
        return reference.array(tensor) * mask

    w = layer.weight
    expected = used(a, "forward_activation") @ used(w, "forward_weight").T + reference.array(layer.bias)
    reference.check_close(output, expected)
    reference.check_close(grad_input, used(g, "grad_input_gradient") @ used(w, "grad_input_weight"))
    reference.check_close(grad_weight, used(g, "grad_weight_gradient").T @ used(a, "grad_weight_activation"))
    reference.check_close(grad_bias, reference.array(g).sum(0))


# ---- equal to dense at S = 0 -------------------------------------------------------------------------------

LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 9, 8)),
    "conv channels last": (
        lambda: nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last),
        (5, 4, 9, 8),
    ),
    "conv reflect": (
        lambda: nn.Conv2d(4, 6, (3, 2), padding=1, groups=2, padding_mode="reflect"),
        (5, 4, 9, 8),
    ),
    "conv one sample": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "linear": (lambda: nn.Linear(12, 7), (5, 12)),
    "linear of a sequence": (lambda: nn.Linear(12, 7, bias=False), (3, 5, 12)),
    "linear of one vector": (lambda: nn.Linear(12, 7), (12,)),
}


@every_algorithm
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "sparsity", [0.0, {"*": 0.0}, lambda iteration: 0.0], ids=["number", "pattern", "schedule"]
)
def test_sparsity_zero_is_dense_bit_for_bit(name, kind, sparsity):
    make, shape = LAYERS[kind]
    dense, input = make(), torch.randn(shape)
    if "channels last" in kind:
        input = input.contiguous(memory_format=torch.channels_last)
    sparse = copy.deepcopy(nn.Sequential(dense))
    # an identity behind it, so that no algorithm leaves the layer dense for being the last
    sparse = torchswat.sparsify_(sparse.append(nn.Linear(1, 1)), name, sparsity)[0]
    gradient = torch.randn_like(dense(input))
    assert (name == "dense") or type(sparse) in SPARSE_CLASSES.values()
    for ours, theirs in zip(one_pass(sparse, input, gradient), one_pass(dense, input, gradient), strict=True):
        reference.check_same_bits(ours, theirs)


# ---- the three products against the reference --------------------------------------------------------------

CONVOLUTIONS = {
    "plain": ({}, (3, 3)),
    "stride and padding": ({"stride": (2, 1), "padding": (1, 2)}, (3, 3)),
    "dilation": ({"dilation": (2, 1), "padding": (0, 1)}, (3, 3)),
    "groups": ({"groups": 2, "padding": (1, 1)}, (3, 3)),
    "depthwise": ({"groups": 4, "stride": (2, 2)}, (2, 3)),
    "same": ({"padding": "same", "dilation": (2, 1)}, (3, 3)),
    "same, even kernel": ({"padding": "same"}, (2, 4)),
    "valid": ({"padding": "valid"}, (3, 3)),
    "1x1": ({"stride": (2, 2)}, (1, 1)),
    **{
        mode: ({"padding": (1, 2), "padding_mode": mode, "stride": (2, 1)}, (3, 3))
        for mode in ("reflect", "replicate", "circular")
    },
}


def compare(
    name: str, layer: nn.Module, products, input, gradient_of, sparsity, scope, selections, relative=1e-12
) -> None:
    """Run one pass of `layer` and of the reference, and compare all four results."""
    model = torchswat.sparsify_(nn.Sequential(layer, nn.Linear(1, 1)), name, sparsity, scope)
    gradient = gradient_of(model[0](input).detach())
    selections.clear()
    torch.manual_seed(5)
    output, grad_input, grad_weight, *grad_bias = one_pass(model[0], input, gradient)
    given = {"M(g)": reference.array(output) != 0} if name == "dsg" else {}
    if name.endswith("random"):
        for what, _, mask in selections:
            given["R(w)" if "weight" in what else "R(a)"] = mask.numpy()
        assert len(selections) == 2, (
            "one mask for the weight, wherever it is used, and one for the activation"
        )
    expected = reference.run(
        name, products, input, layer.weight, layer.bias, gradient, sparsity, scope, given
    )
    reference.check_close(output, expected.output, relative)
    reference.check_close(grad_input, expected.grad_input, relative)
    reference.check_close(grad_weight, expected.grad_weight, relative)
    if layer.bias is not None:
        reference.check_close(grad_bias[0], expected.grad_bias, relative)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@every_algorithm
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_convolutions_agree_with_the_reference(name, kind, scope, selections):
    options, kernel = CONVOLUTIONS[kind]
    layer = nn.Conv2d(4, 8, kernel, bias=kind not in ("plain", "groups"), **options).double()
    geometry = {"mode" if key == "padding_mode" else key: value for key, value in options.items()}
    products = reference.Convolution(kernel, **geometry)
    input = torch.randn(3, 4, 7, 6).double()
    compare(name, layer, products, input, torch.randn_like, 0.7, scope, selections)


@every_algorithm
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("samples", [3, 17])
@pytest.mark.parametrize("plan", ["sparse", "dense"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_compiled_engine_agrees_with_the_reference(name, kind, samples, plan, selections, monkeypatch):
    if native() is None:
        pytest.skip("the compiled engine is not built, or TORCHSWAT_ENGINE turned it off")
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    options, kernel = CONVOLUTIONS[kind]
    layer = nn.Conv2d(4, 8, kernel, bias=kind not in ("plain", "groups"), **options)
    geometry = {"mode" if key == "padding_mode" else key: value for key, value in options.items()}
    products = reference.Convolution(kernel, **geometry)
    input = torch.randn(samples, 4, 7, 6)
    compare(name, layer, products, input, torch.randn_like, 0.7, "nchw", selections, 1e-5)


@every_algorithm
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 4, 12), (12,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_agree_with_the_reference(name, shape, bias, selections):
    layer, input = nn.Linear(12, 7, bias).double(), torch.randn(shape).double()
    for scope in SCOPES:
        compare(name, layer, reference.FullyConnected(), input, torch.randn_like, 0.6, scope, selections)


@pytest.mark.parametrize("name", ["swat", "saw", "meprop", "forward-activation"])
def test_ties_go_to_the_lowest_index(name, selections):
    """Operands of few values, half zero as behind a ReLU, in a layout where memory has another order."""
    layer = nn.Conv2d(4, 6, 3, padding=1).double()
    layer.weight.data = layer.weight.data.sign()
    input = torch.randint(-2, 2, (3, 4, 6, 6)).relu().double().contiguous(memory_format=torch.channels_last)
    products = reference.Convolution((3, 3), padding=(1, 1))
    for sparsity in (0.3, 0.8):
        compare(
            *(name, layer, products, input),
            *(lambda output: torch.randint_like(output, -1, 2), sparsity, "nchw", selections),
        )


# ---- what is kept ------------------------------------------------------------------------------------------


@every_sparse_algorithm
@pytest.mark.parametrize("scope", SCOPES)
def test_exactly_k_entries_are_kept_and_every_operand_is_selected_once(name, scope, selections):
    model, seen = sparse_network(name, 0.7, scope=scope), {}
    for layer_name, layer in sparse_layers(model):
        seen[f"the weight of layer {layer_name!r}"] = layer.weight.detach().clone()
        layer.register_forward_pre_hook(
            lambda module, inputs, key=f"the input of layer {layer_name!r}": seen.update({key: inputs[0]})
        )
    train(model, range(1))
    names = [what for what, _, _ in selections]
    assert len(names) == len(set(names)), "slots of the same tensor share one selection a step"
    for _, tensor, mask in selections:
        length = reference.row_length(tuple(tensor.shape), scope)
        assert (mask.reshape(-1, length).sum(1) == reference.kept_count(length, 0.7)).all()
    for layer_name, layer in sparse_layers(model):  # those that an operation selected
        for operand, what in (("weight", "the weight"), ("activation", "the input")):
            selector = layer.sparse.selectors.get(operand)
            if selector is None or not selector.in_operation or not layer.sparse.algorithm.is_packable:
                continue
            key = f"{what} of layer {layer_name!r}"
            names.append(key)
            k, nonzero = reference.kept_count(seen[key].numel(), 0.7), int(seen[key].count_nonzero())
            count = round(selector.density * seen[key].numel())
            assert count == min(k, nonzero) or (count == k and native() is None), "zeros say nothing"
    row = ALGORITHMS[name]
    operands = {"the weight": "weight", "the input": "activation", "the output gradient": "gradient"}
    expected = {
        f"{what} of layer {layer!r}"
        for layer, _ in sparse_layers(model)
        for what, operand in operands.items()
        if row.selects(operand)
    }
    assert set(names) == expected


def test_dsg_takes_its_threshold_from_the_first_sample_and_keeps_k_of_it():
    model = sparse_network("dsg", 0.7)
    images = torch.randn(4, 3, 8, 8)
    kept = model[0](images) != 0  # (4, 8, 8, 8)
    assert int(kept[0].sum()) == reference.kept_count(8 * 8 * 8, 0.7)
    again = model[0](images[[0, 2, 1, 3]]) != 0
    assert torch.equal(again, kept[[0, 2, 1, 3]]), (
        "the mask of a sample depends on itself and the first alone"
    )
    assert not torch.equal(
        model[0](images * torch.tensor([9.0, 1, 1, 1]).view(4, 1, 1, 1))[1:] != 0, kept[1:]
    )


def test_dsg_predicts_the_largest_outputs():
    torch.manual_seed(2)
    dense = nn.Conv2d(64, 32, 3, padding=1, bias=False)
    images = torch.randn(2, 64, 10, 10)
    whole = dense(images)
    layer = torchswat.sparsify_(nn.Sequential(dense, nn.Linear(1, 1)), "dsg", 0.8)[0]
    kept = layer(images) != 0
    reference.check_close(layer(images)[kept], whole[kept], 1e-5)
    truth = torch.from_numpy(reference.top_k(whole[0].relu(), 0.8))
    share = float((kept[0] & truth).sum() / truth.sum())
    assert share > 0.4, f"chance would find 0.2 of the largest, the projection found {share:.2f}"


def test_dsg_masks_again_behind_batch_norm():
    model = sparse_network("dsg", 0.7)
    images = torch.randn(4, 3, 8, 8)
    before = model[0](images) != 0
    behind = model[:2](images)
    assert torch.equal(behind != 0, before)
    torchswat.desparsify_(model)
    assert (model[:2](images) != 0).all()


# ---- repeating, resuming, converting -----------------------------------------------------------------------


@every_algorithm
def test_a_training_repeats_under_a_seed(name):
    for ours, theirs in zip(*(train(sparse_network(name), range(3)) for _ in range(2)), strict=True):
        reference.check_same_bits(ours, theirs)


@every_algorithm
@pytest.mark.parametrize(
    "settings", [{}, {"period": 4, "warmup": 2}, {"period": 3, "method": "sample", "scope": "chw"}]
)
def test_a_training_resumes_bit_for_bit(name, settings):
    whole = sparse_network(name, **settings)
    expected = train(whole, range(8))
    first = sparse_network(name, **settings)
    train(first, range(5))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "sparse": sparse_state(first)}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = torchswat.sparsify_(network(), name, 0.6, **settings)
    second.load_state_dict(loaded["model"])
    load_sparse_state_(second, loaded["sparse"])
    for ours, theirs in zip(train(second, range(5, 8)), expected, strict=True):
        reference.check_same_bits(ours, theirs)
    assert sparse_state(second).keys() == sparse_state(whole).keys()


@every_algorithm
def test_evaluation_between_steps_changes_no_training(name):
    """Not even where activations are selected by sample, and batches of evaluation are of another size."""
    plain, watched = (sparse_network(name, period=4, scope="chw") for _ in range(2))
    for step in range(6):
        train(plain, range(step, step + 1))
        train(watched, range(step, step + 1))
        watched.eval()
        with torch.no_grad():
            watched(torch.randn(7, 3, 8, 8))
        watched.train()
    for ours, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        reference.check_same_bits(ours.detach(), theirs.detach())


@every_algorithm
def test_conversion_and_back_gives_the_plain_model(name):
    plain = network()
    model = copy.deepcopy(plain)
    parameters = list(model.parameters())
    sparse = torchswat.sparsify_(model, name)
    assert list(sparse.state_dict()) == list(plain.state_dict())
    back = torchswat.desparsify_(sparse)
    assert back is model and repr(back) == repr(plain)
    assert all(a is b for a, b in zip(back.parameters(), parameters, strict=True))
    train(plain, range(2))
    train(back, range(2))
    for ours, theirs in zip(back.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@every_algorithm
def test_measured_cost_is_the_predicted_one(name):
    """Formula and masks agree to the one entry in n that rounding k gives (DSG: by its estimate)."""
    model = sparse_network(name, 0.75)
    count = torchswat.cost(model, torch.randn(4, 3, 8, 8)).total("macs")
    assert count.measured == pytest.approx(count.formula, rel=0.2 if name == "dsg" else 0.01)
    assert (count.formula < count.dense) == (name != "dense")


def looks_at(name: str, operand: str) -> bool:
    return ALGORITHMS[name].projected_output or ALGORITHMS[name].selects(operand)


def with_nan(tensor: Tensor, *place: int) -> Tensor:
    tensor = tensor.detach().clone()
    tensor[place] = np.nan
    return tensor


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if looks_at(name, "weight")])
def test_nan_in_a_weight_names_the_layer(name):
    model = sparse_network(name)
    model[3].weight.data = with_nan(model[3].weight, 3, 1, 0, 0)
    with pytest.raises(NotFinite, match="layer '3'"):
        model(torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if looks_at(name, "activation")])
def test_nan_in_an_input_names_the_layer(name):
    model = sparse_network(name)
    model[2].register_forward_hook(lambda module, inputs, output: with_nan(output, 3, 2, 1, 0))
    with pytest.raises(NotFinite, match="layer '3'"):
        model(torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("name", [n for n, row in ALGORITHMS.items() if row.selects("gradient")])
def test_nan_in_a_gradient_goes_on(name):
    """A GradScaler sees it and skips the step."""
    model = sparse_network(name)
    output = model(torch.randn(4, 3, 8, 8))
    output.backward(torch.full_like(output, float("nan")))
    assert all(p.grad.isnan().any() for p in model.parameters() if p.grad is not None)
