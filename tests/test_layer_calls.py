"""Counts by hand for layers that are not made sparse, frozen models, and any form of input and output."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import torchswat
from torchswat.accounting import Count, cost
from torchswat.errors import InvalidValue


def one(model: nn.Module, example):
    (layer,) = cost(model, example).layers
    return layer


BY_HAND = {
    "Conv1d": (nn.Conv1d(4, 6, 3, groups=2, bias=False), (5, 4, 9), 5 * 6 * 7 * 2 * 3),
    "Conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 2 * 8),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (5, 4, 9), 5 * 4 * 9 * 6 * 3),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), 2 * 4 * 25 * 3 * 9),
    "Bilinear": (nn.Bilinear(3, 4, 5), ((2, 3), (2, 4)), 2 * 5 * 3 * 4),
    "LSTM": (nn.LSTM(3, 4), (7, 2, 3), 7 * 2 * (16 * 3 + 16 * 4)),
    "GRUCell": (nn.GRUCell(3, 4), (2, 3), 2 * (12 * 3 + 12 * 4)),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_layer_that_stays_dense_by_hand(kind):
    layer, sizes, macs = BY_HAND[kind]
    example = torch.randn(sizes) if isinstance(sizes[0], int) else tuple(map(torch.randn, sizes))
    counted = one(nn.Sequential(layer) if isinstance(sizes[0], int) else layer, example)
    assert counted.kind == kind
    for product in (counted.forward, counted.grad_input, counted.grad_weight):
        assert product == Count(macs, macs, macs)


def test_an_embedding_multiplies_nothing_and_keeps_its_indices():
    layer = one(nn.Sequential(nn.Embedding(10, 4)), torch.tensor([[1, 2, 3]]))
    assert layer.kind == "Embedding" and layer.macs == Count()
    assert layer.activations.dense == 3 * 8 and layer.weights == Count()


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(5, 5), nn.BatchNorm1d(5)])
def test_a_norm_multiplies_nothing_and_keeps_its_input(norm):
    layer = one(nn.Sequential(norm), torch.randn(4, 5, 6))
    assert layer.kind == type(norm).__name__
    assert layer.macs == Count() and layer.activations.dense == 4 * 5 * 6 * 4


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 6), heads=st.integers(1, 3), frozen=st.booleans())
def test_multi_head_attention_by_hand(batch, length, heads, frozen):
    """Four projections of E x E, scores and their sum: also where torch has a fast path (frozen)."""
    width = 4 * heads
    layer = nn.MultiheadAttention(width, heads, batch_first=True).requires_grad_(not frozen)
    x = torch.randn(batch, length, width)
    counted = one(layer, (x, x, x))
    macs = batch * length * width * (4 * width + 2 * length)
    assert counted.kind == "MultiheadAttention" and counted.forward.dense == macs
    assert counted.grad_weight.dense == counted.grad_input.dense == (0 if frozen else macs)
    assert counted.weights.dense == (0 if frozen else 4 * 4 * width * width)


class OwnProducts(nn.Module):
    """A module that multiplies in its own forward, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=F.linear(x, self.table)) @ torch.ones(2, 3)


def test_products_of_a_modules_own_forward_count_and_keyword_layers_too():
    layers = {layer.name: layer for layer in cost(OwnProducts(), torch.randn(5, 4)).layers}
    assert set(layers) == {"", "inner"}
    assert layers["inner"].forward.dense == 5 * 6 * 2
    assert layers[""].forward.dense == 5 * 4 * 6 + 5 * 2 * 3
    assert layers[""].weights.dense == 24 * 4


def test_a_layer_called_twice_keeps_the_densities_of_each_call():
    layer = nn.Linear(8, 8, bias=False)
    model = torchswat.sparsify_(nn.Sequential(layer, layer), sparsity=lambda i: 0.5 if i == 0 else 0.75)
    first, second = cost(model, torch.randn(4, 8)).layers
    assert (first.name, second.name) == ("0", "0")
    assert first.forward.measured / first.forward.dense == 0.5
    assert second.forward.measured / second.forward.dense == 0.25


@pytest.mark.parametrize("sparse", [False, True])
def test_a_frozen_layer_has_no_weight_gradient(sparse):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2))
    if sparse:
        torchswat.sparsify_(model, sparsity=0.5)
    model[0].requires_grad_(False), model[2].requires_grad_(False)
    first, trained, behind = cost(model, torch.randn(5, 4)).layers
    assert first.grad_weight == first.grad_input == first.activations == Count()
    assert trained.grad_weight.dense == trained.grad_input.dense == 5 * 18
    assert behind.grad_weight == Count() and behind.activations == Count()
    assert behind.grad_input.dense == 5 * 6 and behind.forward.dense == 5 * 6


@dataclass
class Output:
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class AnyForm(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.layer = form, nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0):
        y = self.layer(x) * scale
        return {"dict": {"logits": y}, "dataclass": Output((y,)), "list": [None, [y]]}[self.form]


@pytest.mark.parametrize("form", ["dict", "dataclass", "list"])
@pytest.mark.parametrize("example", [torch.zeros(3, 4), (torch.zeros(3, 4), 2.0), {"x": torch.zeros(3, 4)}])
def test_any_form_of_input_and_output(form, example):
    """The gradient's density is measured, so the backward pass has run."""
    model = torchswat.sparsify_(AnyForm(form), "meprop", 0.5)
    counted = cost(model, example)
    assert counted.batch == 3
    assert counted.layers[0].grad_weight.measured / counted.layers[0].grad_weight.dense == 0.5


def test_a_hugging_face_network():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config)
    example = {"input_ids": torch.randint(30, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    before = cost(model, example)
    linear = sum(layer.forward.dense for layer in before.layers if layer.kind == "Linear")
    assert linear == 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * (16 * 16 + 16 * 2)
    assert before.total("forward").dense == linear + 2 * 2 * 2 * 25 * 8  # scores and their sum
    assert {"Embedding", "LayerNorm"} <= {layer.kind for layer in before.layers}
    sparse = cost(torchswat.sparsify_(model, sparsity=0.5), example)
    assert sparse.total("macs").dense == before.total("macs").dense
    assert sparse.total("macs").measured < 0.55 * before.total("macs").dense


def test_a_wrong_example_is_refused():
    with pytest.raises(InvalidValue, match=r"does not run on an input of shape \(3, 4\)"):
        cost(AnyForm("dict"), {"y": torch.zeros(3, 4)})


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model.kept = model(torch.zeros(1, 2))  # no leaf
    with pytest.raises(InvalidValue, match="cannot be copied"):
        cost(model, torch.zeros(1, 2))
