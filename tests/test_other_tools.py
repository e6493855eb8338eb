"""What the tracers, transforms, quantizers and reparametrizations of torch do to sparse layers, or say.

Whatever cannot hold a sparse layer is refused in words that name the layer and what to call first.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import torchswat
from torchswat import desparsify_, prune_, sparsify_
from torchswat.errors import InvalidValue

PLAIN = r"torchswat.desparsify_\(torchswat.prune_\(model\)\)"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def example() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# ---- tracers -----------------------------------------------------------------------------------------------


TRACERS = {
    "torch.jit.trace": lambda model: torch.jit.trace(model, example()),
    "torch.jit.script": torch.jit.script,
    "the old ONNX exporter": lambda model: torch.onnx.export(model, (example(),), io.BytesIO(), dynamo=False),
    "torch.fx.symbolic_trace": torch.fx.symbolic_trace,
}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*legacy TorchScript"
)
@pytest.mark.parametrize("name", TRACERS)
def test_tracers_are_refused_with_what_to_call_and_that_helps(name):
    model = sparsify_(network()).eval()
    with pytest.raises(InvalidValue, match=rf"layer '0' is sparse.*{name}.*{PLAIN}"):
        TRACERS[name](model)
    if "ONNX" not in name or _has_onnx():
        TRACERS[name](desparsify_(prune_(model)))


def _has_onnx() -> bool:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_onnx_exporter_is_refused_with_what_to_call_and_that_helps():
    pytest.importorskip("onnxscript")
    model = sparsify_(network()).eval()
    with pytest.raises(Exception, match=rf"layer '0' is sparse.*{PLAIN}"):
        torch.onnx.export(model, (example(),), dynamo=True, verbose=False)
    program = torch.onnx.export(desparsify_(prune_(model)), (example(),), dynamo=True, verbose=False)
    assert program is not None


# ---- transforms --------------------------------------------------------------------------------------------


def _dual(model: nn.Module) -> None:
    with torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(example(), example()))


TRANSFORMS = {
    "grad": lambda m: torch.func.grad(lambda p: torch.func.functional_call(m, p, (example(),)).sum())(
        _parameters(m)
    ),
    "vmap": lambda m: torch.func.vmap(m)(example().unsqueeze(1)),
    "jvp": lambda m: torch.func.jvp(m, (example(),), (example(),)),
    "forward_ad": _dual,
}


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's, as it loads its rules
@pytest.mark.parametrize("algorithm", ["swat", "meprop"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused_with_what_to_call_and_that_helps(name, algorithm):
    model = sparsify_(network(), algorithm)
    with pytest.raises(InvalidValue, match=rf"{name}.*Call torchswat.desparsify_ first"):
        TRANSFORMS[name](model)
    TRANSFORMS[name](desparsify_(model))


def test_functional_call_has_the_gradients_of_a_call():
    model, x = sparsify_(network()), example()
    model(x).square().sum().backward()
    others = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = torch.func.functional_call(model, others, (x,)).square().sum()
    found = torch.autograd.grad(loss, list(others.values()))
    for ours, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(ours, parameter.grad)


# ---- weights that are computed -----------------------------------------------------------------------------


def _prune(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


COMPUTED = {
    "torch.nn.utils.prune": (
        _prune,
        lambda layer: prune.remove(layer, "weight"),
        "prune.remove(layer, 'weight')",
    ),
    "weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm, "remove_weight_norm(layer)"),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, "remove_spectral_norm(layer)"),
    "a parametrization": (
        parametrizations.weight_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        "parametrize.remove_parametrizations(layer, 'weight')",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("by", COMPUTED)
def test_computed_weights_are_refused_with_what_undoes_them(by, before, tmp_path):
    make, undo, words = COMPUTED[by]
    model = network()
    if before and by == "a parametrization":  # the layer's class is another then, so it stays dense
        make(model[3])
        with pytest.warns(UserWarning, match="subclasses of Conv2d or Linear and stay dense: 3"):
            sparsify_(model)
    elif before:
        make(model[3])
        sparsify_(model)
    else:
        make(sparsify_(model)[3])
    model(example()).square().sum().backward()  # it trains
    own = [p for name, p in model.named_parameters() if name.startswith("3.")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
    refused = [lambda: torchswat.save(model, tmp_path / "network.safetensors", input_shape=(3, 8, 8))]
    if not (before and by == "a parametrization"):
        refused.append(lambda: prune_(model))
    for call in refused:
        with pytest.raises(InvalidValue) as error:
            call()
        assert f"the weight of layer '3' is computed from others by {by}" in str(error.value)
        assert words in str(error.value)
    undo(model[3])
    torchswat.save(prune_(model), tmp_path / "network.safetensors", input_shape=(3, 8, 8))
    assert torchswat.load(tmp_path / "network.safetensors")(example()).shape == (2, 4)


def test_a_parametrized_sparse_layer_is_not_made_dense():
    model = sparsify_(network())
    parametrizations.weight_norm(model[3])
    with pytest.raises(InvalidValue, match=r"layer '3'.*remove_parametrizations"):
        desparsify_(model)
    parametrize.remove_parametrizations(model[3], "weight")
    assert type(desparsify_(model)[3]) is nn.Linear


# ---- quantizers --------------------------------------------------------------------------------------------


def _eager(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    return torch.ao.quantization.prepare(model.eval())


def _aware(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model.train())


QUANTIZERS = {
    "dynamic": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
    "static": _eager,
    "aware": _aware,
}


@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization is deprecated", "ignore:.*reduce_range", "ignore:.*quantize_per_tensor"
)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_quantizers_that_skip_sparse_layers_say_so(kind):
    model = sparsify_(network())
    with pytest.warns(UserWarning, match=rf"leaves? these as they.*{PLAIN} first"):
        QUANTIZERS[kind](model)
    quantized = QUANTIZERS[kind](desparsify_(prune_(sparsify_(network()))))
    assert type(quantized[3]) is not nn.Linear or hasattr(quantized[3], "activation_post_process")


# ---- shared weights ----------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.embedding(tokens))


def test_a_tied_embedding_that_is_pruned_is_named():
    with pytest.warns(
        UserWarning, match=r"'decoder.weight' to zero.*same tensor as 'embedding.weight'.*skip="
    ):
        prune_(sparsify_(Tied()))


def test_sparse_layers_that_share_a_weight_are_no_surprise():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.append(model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_(sparsify_(model, sparsity=0.5))
    assert (model[0].weight == 0).sum() == 8


# ---- Hugging Face ------------------------------------------------------------------------------------------


def test_save_pretrained_and_from_pretrained(tmp_path):
    """A checkpoint is that of a plain network; `summary` shows whether it was pruned before."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    model = sparsify_(transformers.ViTForImageClassification(config), sparsity=0.5)
    model(torch.randn(2, 3, 8, 8)).logits.sum().backward()
    for pruned in (False, True):
        if pruned:
            prune_(model)
        model.save_pretrained(tmp_path)
        plain = transformers.ViTForImageClassification.from_pretrained(tmp_path)
        found = {layer.name: layer.nonzero for layer in torchswat.summary(plain).layers}
        sparse = [name for name, _ in torchswat.sparse_layers(model)]
        assert sparse and all((found[name] < 0.6) == pruned for name in sparse)
    again = sparsify_(plain, sparsity=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(again.eval()(x).logits, model.eval()(x).logits, atol=1e-5)
