"""`sparsify_`, `prune_` and `desparsify_` on models as users have them."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

import torchswat
from torchswat import Sparsity, desparsify_, prune_, sparsify_
from torchswat.algorithms import ALGORITHMS
from torchswat.convert import load_sparse_state_, sparse_layers, sparse_state
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue, UnknownName
from torchswat.layers import SparseConv2d, SparseLinear
from torchswat.schedules import Cubic, Steps

NAMES = ["stem", "body.0", "body.2", "head"]


class Network(nn.Module):
    """Four layers, one of them a convolution behind a linear one in definition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).mean((2, 3)))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8)


def step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    model.zero_grad()
    model(images()).square().sum().backward()
    if optimizer is not None:
        optimizer.step()


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in sparse_layers(model)]


# ---- identity ----------------------------------------------------------------------------------------------


def test_the_model_keeps_its_identity():
    model = Network()
    parameters, keys, modules = list(model.parameters()), list(model.state_dict()), list(model.modules())
    calls = []
    model.stem.register_forward_hook(lambda *arguments: calls.append("forward"))
    model.head.register_full_backward_hook(lambda *arguments: calls.append("backward"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert sparsify_(model) is model
    before = model.head.weight.detach().clone()
    step(model, optimizer)
    assert calls == ["forward", "backward"]
    assert not torch.equal(model.head.weight, before), "the optimizer must still hold the parameters"
    for stage in (model, desparsify_(model)):
        assert list(stage.state_dict()) == keys
        assert all(a is b for a, b in zip(stage.parameters(), parameters, strict=True))
        assert all(a is b for a, b in zip(stage.modules(), modules, strict=True))
    assert type(model.stem) is nn.Conv2d and type(model.head) is nn.Linear
    assert isinstance(model.head, nn.Linear) and not hasattr(model.head, "sparse")
    step(model)
    assert calls == ["forward", "backward"] * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_state_dict_goes_both_ways(algorithm):
    plain, sparse = Network(), sparsify_(Network(), algorithm)
    assert not sparse.load_state_dict(plain.state_dict()).missing_keys
    assert not plain.load_state_dict(sparse.state_dict()).unexpected_keys


def test_the_optimizer_updates_all_weights_not_only_the_kept_ones():
    layer = sparsify_(nn.Linear(10, 10), sparsity=0.9)
    before = layer.weight.detach().clone()
    layer(torch.randn(64, 10)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert (layer.weight != before).all()


# ---- which layers, how sparse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        ((), NAMES),
        (("first",), NAMES[1:]),
        (("last",), NAMES[:-1]),
        (("first", "last"), NAMES[1:-1]),
        (("body.*",), ["stem", "head"]),
        (["body.?", "stem"], ["head"]),
        (("*",), []),
    ],
)
def test_skip(skip, expected):
    assert names(sparsify_(Network(), skip=skip)) == expected


def test_first_is_the_first_convolution_or_the_first_layer_where_there_is_none():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 4))
    assert names(sparsify_(model, skip=("first",))) == ["0", "2"]
    assert names(sparsify_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), skip=("first",))) == ["1"]


def test_dsg_leaves_the_classes_alone():
    assert names(sparsify_(Network(), "dsg")) == NAMES[:-1]


def test_sparsity_by_pattern_the_first_that_fits_counts_and_the_rest_stays_dense():
    model = sparsify_(Network(), sparsity={"body.0": 0.5, "body.*": 0.75, "head": Cubic(0.9, steps=4)})
    assert names(model) == NAMES[1:]
    step(model)
    kept = {
        name: layer.sparse.selectors["weight"].density * layer.weight.numel()
        for name, layer in sparse_layers(model)
    }
    assert kept == {"body.0": 576 // 2, "body.2": 64 // 4, "head": 40}, (
        "the schedule of the head begins dense"
    )
    prune_(model)
    assert {name: int(layer.weight.count_nonzero()) for name, layer in sparse_layers(model)} == kept


def test_a_schedule_is_followed_layer_by_layer():
    model = sparsify_(Network(), sparsity=Steps(((0, 0.0), (1, 0.5), (3, 0.75))))
    kept = []
    for _ in range(5):
        step(model)
        kept.append(round(64 * model.body[2].sparse.selectors["weight"].density))
    assert kept == [64, 32, 32, 16, 16]


def test_calling_it_again_changes_the_settings_and_starts_anew():
    model = sparsify_(Network(), "swat", 0.5, skip=("first",))
    step(model)
    assert sparsify_(model, "saw", 0.9) is model
    assert names(model) == NAMES
    assert {layer.sparse.algorithm.name for _, layer in sparse_layers(model)} == {"saw"}
    assert {layer.sparse.iteration for _, layer in sparse_layers(model)} == {0}
    assert names(sparsify_(model, "dense")) == []
    assert type(model.stem) is nn.Conv2d


def test_a_second_call_that_fails_changes_nothing():
    model = sparsify_(Network(), sparsity=0.5)
    for wrong in ({"sparsity": 2.0}, {"skip": ("tail",)}, {"algorithm": "swot"}):
        with pytest.raises(ValueError):
            sparsify_(model, **wrong)
    assert names(model) == NAMES and model.stem.sparse.sparsity == 0.5


def test_all_settings_in_one_object():
    settings = Sparsity("saw", 0.75, scope="hw", method="sort", period=3, warmup=2, skip=("last",))
    model = sparsify_(Network(), settings)
    assert names(model) == NAMES[:-1]
    selector = model.stem.sparse.selectors["weight"]
    assert (selector.scope, selector.method, selector.period, selector.warmup) == ("hw", "sort", 3, 2)


def test_the_whole_model_may_be_one_layer():
    for layer, input in ((nn.Conv2d(3, 4, 3), images()), (nn.Linear(8, 4), torch.randn(2, 8))):
        model = sparsify_(layer, sparsity=0.5)
        assert model is layer and names(model) == [""]
        model(input).sum().backward()
        state = sparse_state(model)
        load_sparse_state_(model, state)
        assert model.sparse.iteration == 1
        prune_(model)
        assert int((model.weight != 0).sum()) == model.weight.numel() // 2
        assert type(desparsify_(model)) in (nn.Conv2d, nn.Linear)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 80, float("nan"), "0.8", {"head": 1.5}, {"head": None}])
def test_a_sparsity_out_of_range(sparsity):
    with pytest.raises(InvalidValue, match="allowed is a number from 0"):
        sparsify_(Network(), sparsity=sparsity)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 0}, "period is 0; allowed is a whole number of iterations, at least 1"),
        ({"period": 2.5}, "period is 2.5"),
        ({"warmup": -1}, "warmup is -1"),
        ({"skip": "first"}, "skip is 'first'; allowed is a tuple"),
        ({"skip": (1,)}, r"skip is \(1,\)"),
        ({"skip": ("tail",)}, "the pattern 'tail' fits no layer; the layers are stem, body.0"),
        ({"sparsity": {"tail.*": 0.5}}, r"the pattern 'tail.\*' fits no layer"),
        ({"sparsity": {"last": 0.5, "*": 0.9}}, "the pattern 'last' fits no layer"),  # a word of skip alone
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InvalidValue, match=message):
        sparsify_(Network(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "sawt"}, "unknown algorithm 'sawt': did you mean 'sa?w"),
        ({"scope": "nhwc"}, "unknown scope 'nhwc': did you mean 'n?chw'"),
        ({"method": "quick-select"}, "did you mean 'quickselect'"),
    ],
)
def test_unknown_names(settings, message):
    with pytest.raises(UnknownName, match=message):
        sparsify_(Network(), **settings)


def test_a_model_without_layers():
    with pytest.raises(InvalidValue, match="Sequential has no Conv2d or Linear layer"):
        sparsify_(nn.Sequential(nn.ReLU()))


def test_a_lazy_layer():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(InvalidValue, match="layer '1' is lazy"):
        sparsify_(model)
    model(images())
    assert names(sparsify_(model)) == ["1"]


def test_layers_of_subclasses_stay_dense_and_are_named():
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4))
    with pytest.warns(UserWarning, match="subclasses of Conv2d or Linear and stay dense: 1") as caught:
        sparsify_(model)
    assert caught[0].filename == __file__
    assert names(model) == ["0"] and type(model[1]) is Scaled


# ---- shared, copied, saved ---------------------------------------------------------------------------------


def test_a_module_used_twice_and_a_shared_parameter():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.second(self.first(x)))

    model = sparsify_(Tied().double(), sparsity=0.5)
    assert names(model) == ["first", "second"] and model.again is model.first
    assert len(list(model.parameters())) == 1
    x = torch.randn(3, 6).double().requires_grad_()
    output = model(x)
    output.sum().backward()
    # the chain by hand: three swat layers with one weight, whose gradients add up
    w, a, g = reference.array(model.first.weight), [reference.array(x)], np.ones((3, 6))
    kept = w * reference.top_k(w, 0.5)
    for _ in range(3):
        a.append(a[-1] @ kept.T)
    reference.check_close(output, a[3])
    total = np.zeros_like(w)
    for layer in (2, 1, 0):
        total += g.T @ (a[layer] * reference.top_k(a[layer], 0.5))
        g = g @ kept
    reference.check_close(model.first.weight.grad, total)
    reference.check_close(x.grad, g)
    assert int((prune_(model).first.weight != 0).sum()) == 18
    assert [type(m) for m in desparsify_(model).children()] == [nn.Linear] * 2


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file])
@pytest.mark.parametrize("algorithm", ["swat", "meprop", "dsg"])
def test_a_copy_goes_on_as_the_original_and_apart_from_it(copied, algorithm):
    model = sparsify_(Network(), algorithm, 0.6, period=3)
    step(model)
    twin = copied(model)
    for network in (model, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            step(network, optimizer)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert ours is not theirs and torch.equal(ours, theirs)
    before = sparse_state(model)
    with torch.no_grad():
        twin.stem.weight.zero_()
    step(twin)
    assert all(torch.equal(a, b) for a, b in zip(sparse_state(model).values(), before.values(), strict=True))
    desparsify_(twin)
    assert names(model) and not names(twin)
    assert not twin.norm._forward_hooks


@pytest.mark.parametrize("scope", ["nchw", "chw"])
def test_loading_weights_forgets_the_thresholds_of_the_old_ones(scope):
    model = sparsify_(Network(), sparsity=0.5, period=10, scope=scope)
    step(model)
    step(model)
    model.load_state_dict({name: 3 * tensor for name, tensor in Network().state_dict().items()})
    assert model.stem.sparse.selectors["weight"].threshold is None
    prune_(model)
    reference.check_mask(model.stem.weight != 0, reference.top_k(model.stem.weight, 0.5, scope))


def test_pruning_repeats():
    model = sparsify_(Network(), sparsity=0.5)
    step(model)
    prune_(model)
    once = copy.deepcopy(model.state_dict())
    prune_(model)
    assert all(torch.equal(a, once[name]) for name, a in model.state_dict().items())
    reference.check_mask(model.stem.weight != 0, reference.top_k(model.stem.weight, 0.5))


def test_a_sparse_state_of_other_layers_is_refused():
    state = sparse_state(sparsify_(Network()))
    with pytest.raises(InvalidValue, match=r"stem on one side only\. Call sparsify_ with the settings"):
        load_sparse_state_(sparsify_(Network(), skip=("first",)), state)


# ---- pruning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [name for name, row in ALGORITHMS.items() if row.selects("weight")])
@pytest.mark.parametrize(
    "settings", [{}, {"period": 4}, {"scope": "chw"}, {"exact": False}, {"method": "sample"}]
)
def test_pruning_writes_exact_zeros_where_nothing_is_selected(algorithm, settings):
    model = sparsify_(Network(), algorithm, 0.75, **settings)
    for _ in range(3):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = {name: layer.weight.detach().clone() for name, layer in sparse_layers(model)}
    assert prune_(model) is model
    for name, layer in sparse_layers(model):
        weight, scope = before[name], settings.get("scope", "nchw")
        if "random" in algorithm:
            length = reference.row_length(tuple(weight.shape), scope)
            counts = layer.weight.reshape(-1, length).count_nonzero(dim=1)
            assert (counts == reference.kept_count(length, 0.75)).all()
            mask = layer.weight != 0
        elif "period" in settings:  # a search is due in iterations 0 and 4
            mask = weight.abs() >= layer.sparse.selectors["weight"].threshold
        else:
            mask = torch.from_numpy(reference.top_k(weight, 0.75, scope))
        assert torch.equal(layer.weight, torch.where(mask, weight, 0))
        assert 0.1 < float((layer.weight != 0).float().mean()) < 0.45


@pytest.mark.parametrize("algorithm", [name for name, row in ALGORITHMS.items() if row.forward_weight])
@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("which", ["reference", "auto"])
def test_the_pruned_network_is_the_sparse_one(algorithm, period, which):
    """Bit for bit in plain torch; compiled kernels add the same products up in another order."""
    model, x = sparsify_(Network(), algorithm, 0.75, period=period), images()
    for _ in range(3):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    with torch.no_grad(), engine(which):
        sparse = model(x)
        pruned = desparsify_(prune_(model))(x)
    if which == "reference":
        reference.check_same_bits(pruned, sparse)
    reference.check_close(pruned, sparse, 1e-5)
    assert names(model) == []


def test_pruning_before_any_pass_selects_now():
    model = prune_(sparsify_(Network(), sparsity=0.5))
    assert int((model.body[2].weight != 0).sum()) == 32


@pytest.mark.parametrize("algorithm", ["dense", "meprop", "forward-activation", "dsg"])
def test_algorithms_with_dense_weights_have_nothing_to_prune(algorithm):
    model = sparsify_(Network(), algorithm)
    step(model)
    before = copy.deepcopy(model.state_dict())
    reason = "it has no sparse layers" if algorithm == "dense" else f"'{algorithm}', leaves weights dense"
    with pytest.warns(UserWarning, match=reason) as caught:
        prune_(model)
    assert caught[0].filename == __file__
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_a_layer_at_sparsity_zero_is_not_pruned():
    model = sparsify_(Network(), sparsity={"head": 0.0, "*": 0.5})
    step(model)
    prune_(model)
    assert (model.head.weight != 0).all()


def test_pruning_before_a_schedule_begins_warns_and_a_named_sparsity_prunes():
    model = sparsify_(Network(), sparsity=Cubic(0.9, steps=100))
    step(model)
    with pytest.warns(UserWarning, match=r"a schedule that has not begun.*prune_\(model, sparsity=0.8\)"):
        prune_(model)
    assert (model.head.weight != 0).all()
    prune_(model, sparsity=0.8)
    for _, layer in sparse_layers(model):
        kept = reference.kept_count(layer.weight.numel(), 0.8)
        assert int(layer.weight.count_nonzero()) == kept


def test_pruning_to_sparsities_by_name():
    model = prune_(sparsify_(Network(), sparsity=0.5), sparsity={"body.*": 0.75, "stem": 0.25})
    kept = {name: int(layer.weight.count_nonzero()) for name, layer in sparse_layers(model)}
    assert kept == {"stem": 162, "body.0": 144, "body.2": 16, "head": 40}
    with pytest.raises(InvalidValue, match="allowed is a number from 0"):
        prune_(model, sparsity=1.0)


def test_pruned_weights_may_train_on():
    layer = prune_(sparsify_(nn.Linear(10, 10), sparsity=0.9))
    layer(torch.randn(64, 10)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert (layer.weight != 0).all()


# ---- switches ----------------------------------------------------------------------------------------------


def test_moving_and_casting_keep_working():
    model = sparsify_(Network(), sparsity=0.5).double().to("cpu").to(memory_format=torch.channels_last)
    assert isinstance(model.stem, SparseConv2d) and isinstance(model.head, SparseLinear)
    output = model(images().double())
    output.sum().backward()
    assert model.stem.weight.dtype == model.stem.weight.grad.dtype == torch.float64
    assert torchswat.prune_(model.float())(images()).dtype == torch.float32


def test_batch_norm_hooks_of_dsg_do_not_pile_up():
    model = Network()
    for _ in range(3):
        sparsify_(model, "dsg")
    assert len(model.norm._forward_hooks) == 1
    sparsify_(model, "swat")
    assert not model.norm._forward_hooks


def test_weights_computed_from_others_are_neither_pruned_nor_undone_in_silence():
    for reparametrize in (nn.utils.parametrizations.orthogonal, nn.utils.spectral_norm):
        model = sparsify_(nn.Sequential(nn.Linear(16, 16)), sparsity=0.75)
        reparametrize(model[0])
        model(torch.randn(2, 16))
        with pytest.raises(InvalidValue, match="the weight of layer '0' is computed from others"):
            prune_(model)
    model = sparsify_(nn.Sequential(nn.Linear(16, 16)), sparsity=0.75)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(InvalidValue, match="remove_parametrizations"):
        desparsify_(model)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(desparsify_(model)[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*nested tensor", "ignore:2 layers are of subclasses")
@pytest.mark.parametrize("masked", [False, True])
def test_torchs_fast_path_of_a_transformer_does_not_go_around_sparse_layers(masked):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = sparsify_(nn.TransformerEncoder(layer, 2), sparsity=0.9).eval()
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None
    expected = model(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        actual = model(x, src_key_padding_mask=mask)
    keep = slice(None) if mask is None else ~mask
    torch.testing.assert_close(actual[keep], expected[keep], rtol=1e-4, atol=1e-5)
    desparsify_(prune_(model))
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, src_key_padding_mask=mask)[keep], expected[keep], rtol=1e-4, atol=1e-5
        )
    assert all(m.activation_relu_or_gelu == 1 for m in model.layers)
