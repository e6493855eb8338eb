"""Weights selected in blocks: the option, its masks over a training, and what programs do with such models."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import math
import pickle

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchswat
from torchswat import Sparsity, cost, desparsify_, prune_, sparsify_
from torchswat.algorithms import ALGORITHMS, Algorithm
from torchswat.blocks import BlockSelector, check_block
from torchswat.convert import load_sparse_state_, sparse_layers, sparse_state
from torchswat.engine.loader import engine
from torchswat.engine.state import new_state
from torchswat.errors import InvalidValue, NotFinite
from torchswat.schedules import Steps

ENGINES = ["reference", "auto"]
SELECTING = [name for name, row in ALGORITHMS.items() if row.selection_of("weight") == "top-k"]


def network(**settings) -> nn.Sequential:
    """Return layers whose sizes blocks do not divide, but for the last one's."""
    layers = [
        *(nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 6, 3, groups=3)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(96, 6)),
    ]
    return sparsify_(nn.Sequential(*layers), **{"sparsity": 0.8, "block": (2, 2), **settings})


def train(model: nn.Module, steps: range) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        images, labels = torch.randn(4, 3, 6, 6, generator=draw), torch.randint(6, (4,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def drifting(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a weight that moves by some per cent a step."""
    first, second = (torch.randn(10, 7, 3, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    return (first + 0.05 * step * second).to(dtype)


# ---- the option --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [2, "22", None, (2,), (2, 2, 2), (0, 2), (3, 2), (2, 16), (2.0, 2), (True, 2)]
)
def test_a_block_that_is_none_is_refused(block):
    with pytest.raises(InvalidValue, match=r"allowed is a pair \(filters, input channels\) of 1, 2, 4 or 8"):
        Sparsity(block=block)


def test_a_block_may_be_written_as_a_list():
    assert Sparsity(block=[1, 4]).block == check_block([1, 4]) == (1, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scope": "chw"}, r"block is \(2, 2\) with scope 'chw'; allowed is scope 'nchw'"),
        ({"scope": "hw"}, "Leave out scope, or block"),
        ({"algorithm": "random"}, r"'random' draws weights at random; allowed is \(1, 1\) there"),
        ({"algorithm": "saw-random"}, "draws weights at random"),
        ({"algorithm": "meprop"}, "'meprop' leaves weights dense"),
        ({"algorithm": "dsg"}, "'dsg' leaves weights dense"),
        ({"algorithm": "forward-activation"}, "leaves weights dense"),
    ],
    ids=str,
)
def test_what_does_not_go_with_blocks_is_refused(settings, words):
    with pytest.raises(InvalidValue, match=words):
        sparsify_(nn.Sequential(nn.Linear(4, 4)), block=(2, 2), **settings)
    sparsify_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), block=(1, 1), **settings)


def test_dense_takes_blocks_as_it_takes_a_sparsity():
    assert type(sparsify_(nn.Linear(4, 4), "dense", block=(2, 2))) is nn.Linear


def test_only_weights_are_selected_in_blocks():
    model = network(algorithm=Algorithm("mine", "", "", forward_weight="top-k", grad_input_gradient="top-k"))
    assert isinstance(model[0].sparse.selectors["weight"], BlockSelector)
    assert not isinstance(model[0].sparse.selectors["gradient"], BlockSelector)
    assert not any(isinstance(s, BlockSelector) for s in network(block=(1, 1))[0].sparse.selectors.values())
    layer = network()[3]
    assert layer.sparse.block == (2, 2) and layer.sparse.selectors["weight"].groups == 3
    assert type(layer.sparse.selectors["activation"]) is type(Sparsity().selector(random=False))


# ---- masks over a training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ENGINES)
@given(
    st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2),
    st.tuples(*[st.integers(1, 9)] * 2),
    st.sampled_from([1, 2]),
    st.sampled_from([0.2, 0.8, 0.9]),
)
def test_it_keeps_the_blocks_of_the_definition(asked, dtype, block, sizes, groups, sparsity):
    draw = torch.Generator().manual_seed(7)
    shape = groups * sizes[0], sizes[1], 2, 3
    weight = torch.randint(-3, 4, shape, generator=draw).to(dtype)  # sums are exact, and many are tied
    with engine(asked):
        mask = BlockSelector(block=block, groups=groups)(weight, sparsity, 0)
    reference.check_mask(mask, reference.top_blocks(weight, sparsity, block, groups))


@pytest.mark.parametrize(
    "settings", [{}, {"period": 3}, {"period": 3, "warmup": 2}, {"exact": False}], ids=str
)
def test_both_engines_remember_the_same_and_give_bitwise_the_same_masks(settings):
    one, other = (BlockSelector(block=(2, 2), **settings) for _ in range(2))
    for iteration in range(8):
        weight = drifting(iteration)
        with engine("reference"):
            expected = one(weight, 0.7, iteration)
        assert torch.equal(other(weight, 0.7, iteration), expected)
        assert torch.equal(one.state, other.state)
        assert one.threshold == other.threshold and one.density == expected.double().mean()


@pytest.mark.parametrize("asked", ENGINES)
def test_a_threshold_of_sums_is_kept_for_the_period(asked):
    selector, thresholds = BlockSelector(block=(2, 2), period=3, warmup=2), []
    with engine(asked):
        for iteration in range(7):
            mask = selector(drifting(iteration), 0.7, iteration)
            thresholds.append(float(selector.threshold))
            sums = reference.array(drifting(iteration)[:2, :2]).__abs__().sum((0, 1))
            assert ((sums >= thresholds[-1]) == mask[0, 0].numpy()).all()
    assert len(set(thresholds[:2])) == 2 and len(set(thresholds[1:3])) == 1
    assert thresholds[3] == thresholds[4] == thresholds[5] != thresholds[6]


@pytest.mark.parametrize("asked", ENGINES)
def test_what_is_not_remembered_moves_nothing_and_what_is_forgotten_is_searched(asked):
    selector = BlockSelector(block=(2, 2), period=5)
    with engine(asked):
        selector(drifting(0), 0.7, 0)
        before = selector.state.clone()
        selector(drifting(1), 0.5, 5, remember=False)
        assert torch.equal(selector.state, before)
        selector.forget()
        assert selector.threshold is None
        selector(drifting(1), 0.5, 1)
        assert selector.density == reference.top_blocks(drifting(1), 0.5, (2, 2)).mean()


@pytest.mark.parametrize("asked", ENGINES)
@pytest.mark.parametrize("iteration", [0, 1])
def test_a_nan_is_an_error_that_names_the_weight(asked, iteration):
    selector, weight = BlockSelector(block=(2, 2), period=2), drifting(0)
    selector(weight, 0.7, 0)
    weight[9, 6, 2, 2] = math.nan
    with (
        engine(asked),
        pytest.raises(NotFinite, match="the weight of layer 'a' has NaN among its 630 entries"),
    ):
        selector(weight, 0.7, iteration, "the weight of layer 'a'")


@pytest.mark.parametrize("asked", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mask_lies_in_memory_as_its_weight_does(asked, dtype):
    weight = drifting(0, dtype).contiguous(memory_format=torch.channels_last)
    with engine(asked):
        mask = BlockSelector(block=(2, 4))(weight, 0.7, 0)
    assert mask.stride() == weight.stride()
    reference.check_mask(mask, reference.top_blocks(weight, 0.7, (2, 4)))


def test_shapes_without_values_have_whole_masks():
    selector = BlockSelector(block=(2, 2))
    assert selector(torch.ones(0, 3), 0.5, 0).shape == (0, 3)
    assert selector(torch.ones(4, 3, device="meta"), 0.5, 0).is_meta


# ---- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ENGINES)
@pytest.mark.parametrize("algorithm", SELECTING)
@pytest.mark.parametrize(
    ("layer", "products", "size"),
    [
        (nn.Conv2d(6, 5, 3, padding=1), reference.Convolution((3, 3), padding=(1, 1)), (2, 6, 5, 4)),
        (nn.Conv2d(6, 8, (1, 3), groups=2), reference.Convolution((1, 3), groups=2), (2, 6, 5, 4)),
        (nn.Linear(7, 5), reference.FullyConnected(), (4, 7)),
    ],
    ids=["conv", "grouped", "linear"],
)
def test_a_pass_is_that_of_the_paper_on_these_blocks(asked, algorithm, layer, products, size):
    model = sparsify_(nn.Sequential(copy.deepcopy(layer)), algorithm, 0.6, block=(2, 2))
    x = torch.randn(size, requires_grad=True)
    with engine(asked):
        output = model(x)
        gradient = torch.randn_like(output)
        output.backward(gradient)
    weight = model[0].weight
    mask = reference.top_blocks(weight, 0.6, (2, 2), getattr(layer, "groups", 1))
    operands = x, weight, model[0].bias, gradient, 0.6
    truth = reference.run(algorithm, products, *operands, given={"T(w)": mask})
    for actual, expected in (
        (output, truth.output),
        (x.grad, truth.grad_input),
        (weight.grad, truth.grad_weight),
        (model[0].bias.grad, truth.grad_bias),
    ):
        reference.check_close(actual, expected, 1e-5)
    assert model[0].sparse.selectors["weight"].density == pytest.approx(mask.mean(), abs=1e-7)


@pytest.mark.parametrize("asked", ENGINES)
@pytest.mark.parametrize("settings", [{}, {"period": 3}, {"exact": False}, {"method": "sample"}], ids=str)
def test_a_pruned_network_evaluates_as_the_sparse_one(asked, settings):
    with engine(asked):
        model = network(**settings)
        train(model, range(5))
        model.eval()
        x = torch.randn(4, 3, 6, 6)
        expected = model(x)
        masks = {name: layer.selected_weights(0.8) for name, layer in sparse_layers(model)}
        prune_(model)
        for name, layer in sparse_layers(model):
            assert torch.equal(layer.weight != 0, masks[name])
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(desparsify_(model)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"block": (2, 2)}, {"block": (1, 1)}, {"block": (1, 1), "scope": "chw"}], ids=str
)
def test_prune_takes_another_sparsity_between_searches(settings):
    model = network(period=10, **settings)
    train(model, range(3))
    assert (prune_(model, 0.5)[6].weight != 0).double().mean() == 0.5


def test_a_schedule_says_how_many_blocks_are_kept():
    model = network(sparsity=Steps(((0, 0.0), (1, 0.5), (2, 0.75))))
    found = []
    for step in range(3):
        train(model, range(step, step + 1))
        found.append(model[6].sparse.selectors["weight"].density)
    assert found == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("asked", ENGINES)
def test_a_pass_without_gradients_leaves_the_threshold_of_sums(asked):
    """SAW's forward product is dense, so such a pass needs no mask; the state holds that of blocks all the same."""
    model = network(algorithm="saw")
    with engine(asked), torch.no_grad():
        model(torch.randn(2, 3, 6, 6))
    assert model[0].sparse.selectors["weight"].threshold > model[0].weight.abs().max()


def test_a_nan_names_the_layer():
    model = network()
    model[3].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(NotFinite, match="the weight of layer '3' has NaN"):
        model(torch.randn(2, 3, 6, 6))


def test_bfloat16_weights_and_autocast():
    model, x = network(), torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
    assert model[6].sparse.selectors["weight"].density == pytest.approx(0.2, abs=0.005)
    narrow = network().to(torch.bfloat16)
    narrow(x.bfloat16()).sum().backward()
    assert narrow[6].sparse.selectors["weight"].density == pytest.approx(0.2, abs=0.005)


# ---- what programs do with such models ---------------------------------------------------------------------


def through_sparse_state(model: nn.Module) -> nn.Module:
    fresh = network(period=3)
    fresh.load_state_dict(model.state_dict())
    load_sparse_state_(fresh, sparse_state(model))
    return fresh


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_sparse_state]
)
@pytest.mark.parametrize("asked", ENGINES)
def test_a_training_goes_on_as_if_nothing_had_happened(way, asked):
    with engine(asked):
        whole, part = network(period=3), network(period=3)
        part.load_state_dict(whole.state_dict())
        for model in (whole, part):
            train(model, range(5))
        resumed = way(part)
        for ours, theirs in zip(train(resumed, range(5, 8)), train(whole, range(5, 8)), strict=True):
            assert torch.equal(ours, theirs)
    for name, words in sparse_state(whole).items():
        assert torch.equal(words, sparse_state(resumed)[name])


def test_the_summary_names_the_blocks():
    found = {layer.name: layer.why for layer in torchswat.summary(network(block=(1, 4))).layers}
    assert found["0"] == found["6"] == "weights in blocks of 1 x 4"
    assert "blocks" not in str(torchswat.summary(network(block=(1, 1))))


def test_cost_counts_what_is_really_kept():
    model, x = network(), torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    layer = next(layer for layer in cost(model, x).layers if layer.name == "0")
    mask = reference.top_blocks(model[0].weight, 0.8, (2, 2))
    assert layer.forward.measured == pytest.approx(layer.forward.dense * mask.mean())
    assert layer.forward.formula == pytest.approx(layer.forward.dense * 0.2)


def test_a_pruned_network_is_saved_and_loaded(tmp_path):
    model = sparsify_(torchswat.models.create("resnet-digits"), sparsity=0.8, block=(2, 2))
    x = torch.randn(4, 1, 8, 8)
    model(x).sum().backward()
    model = desparsify_(prune_(model)).eval()
    torchswat.save(model, tmp_path / "network.safetensors", input_shape=(1, 8, 8))
    reference.check_close(torchswat.load(tmp_path / "network.safetensors")(x), model(x), 1e-4)


def test_torch_compile_is_told_what_to_do():
    compiled = torch.compile(network(), backend="eager", fullgraph=True)
    with pytest.raises(
        Exception, match=r"by block, scope, method or random masks that torch.compile cannot"
    ) as caught:
        compiled(torch.randn(2, 3, 6, 6))
    assert "Call torch.compiler.disable on the model" in str(caught.value)
    torch.compiler.reset()


def test_a_state_on_another_device_is_read_in_torch():
    """The kernel reads and writes the state where it lies, so a state without memory there is not handed to it."""

    class Elsewhere(Tensor):
        pass

    selector = BlockSelector(block=(2, 2), state=new_state().as_subclass(Elsewhere))
    reference.check_mask(selector(drifting(0), 0.7, 0), reference.top_blocks(drifting(0), 0.7, (2, 2)))
