"""Scores averaged over views of an image: which views, how they are weighted, and where they are refused."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch
from data.fabricate import write_pictures
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat.convert import sparsify_
from torchswat.data import load
from torchswat.errors import InvalidValue, UnknownName
from torchswat.training.evaluate import evaluate
from torchswat.training.loop import train
from torchswat.training.recipe import Recipe
from torchswat.training.reload import evaluate_saved
from torchswat.training.views import Views, average_scores, check_views, known_views, weighted_views

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6))
some_views = st.sampled_from(get_args(Views))


def views_of_one(image: np.ndarray, views: str) -> list[tuple[float, np.ndarray]]:
    """The views of one image (C, H, W), written down from their description."""
    if views == "plain":
        return [(1, image)]
    if views == "mirror":
        return [(1 / 2, image), (1 / 2, image[:, :, ::-1])]
    _, height, width = image.shape
    bordered = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    up_left, down_right = bordered[:, 2:, 2:], bordered[:, :height, :width]
    moved = [side for view in (up_left, down_right) for side in (view, view[:, :, ::-1])]
    return [(1 / 4, image), (1 / 4, image[:, :, ::-1]), *((1 / 8, view) for view in moved)]


@given(shapes, some_views, st.integers(0, 99))
def test_the_views_are_those_described(shape, views, seed):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = list(weighted_views(images, views))
    assert sum(weight for weight, _ in found) == 1
    for number, image in enumerate(images.numpy()):
        expected = {(weight, view.tobytes()) for weight, view in views_of_one(image, views)}
        assert {(weight, view[number].numpy().tobytes()) for weight, view in found} == expected


@given(shapes, some_views, st.integers(0, 99))
def test_a_linear_network_scores_the_average_image(shape, views, seed):
    torch.manual_seed(seed)
    images = torch.randn(shape, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3, dtype=torch.float64))
    average = [sum(weight * view for weight, view in views_of_one(image, views)) for image in images.numpy()]
    torch.testing.assert_close(
        average_scores(model, images, views), model(torch.from_numpy(np.stack(average)))
    )


@given(shapes, st.sampled_from(["mirror", "mirror+shift"]), st.integers(0, 99))
def test_scores_in_bfloat16_are_averaged_in_float32(shape, views, seed):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = average_scores(lambda seen: seen.flatten(1).bfloat16(), images, views)
    parts = [weight * view.flatten(1).bfloat16().float() for weight, view in weighted_views(images, views)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(parts).sum(0))


@given(shapes, st.integers(0, 99))
def test_an_image_and_its_mirror_image_score_alike(shape, seed):
    torch.manual_seed(seed)
    images = torch.randn(shape)
    model = nn.Sequential(nn.Conv2d(shape[1], 4, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    there, back = (average_scores(model, seen, "mirror") for seen in (images, images.flip(3)))
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize("views", get_args(Views))
def test_sparse_networks_are_averaged_as_dense_ones(views):
    model = sparsify_(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
        ),
        sparsity=0.6,
    )
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    model(images).sum().backward()
    model.eval()
    with torch.no_grad():
        expected = torch.stack(
            [
                sum(
                    weight * model(torch.from_numpy(view.copy())[None])[0]
                    for weight, view in views_of_one(image, views)
                )
                for image in images.numpy()
            ]
        )
        torch.testing.assert_close(average_scores(model, images, views), expected, rtol=1e-4, atol=1e-5)
    loss, correct, count = evaluate(model, [(images, labels)], views=views).tolist()
    assert loss == pytest.approx(6 * nn.functional.cross_entropy(expected, labels).item(), rel=1e-4)
    assert (correct, count) == ((expected.argmax(1) == labels).sum().item(), 6)


def test_recipes_know_the_same_views():
    assert Recipe.model_fields["views"].annotation == Views
    with pytest.raises(UnknownName, match=r"unknown views 'mirrored': did you mean 'mirror'\? Known: plain"):
        known_views("mirrored")


def test_images_that_are_not_mirrored_in_training_are_not_at_test(tiny, tmp_path):
    digits, pets = load("digits"), load(str(write_pictures(tmp_path / "pets")))
    for section, dataset in ({}, digits), ({"flip": "none"}, load("synthetic")), ({"flip": "none"}, pets):
        check_views("plain", tiny(data=section), dataset)
        for views in "mirror", "mirror+shift":
            with pytest.raises(InvalidValue, match=f"views is .*does not mirror those of {dataset.name}"):
                check_views(views, tiny(data=section), dataset)
    for section, dataset in ({"flip": "random"}, digits), ({"augment": False}, load("synthetic")), ({}, pets):
        check_views("mirror", tiny(data=section), dataset)


def test_views_that_do_not_suit_the_data_are_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(InvalidValue, match="those of digits"):
        train(tiny(views="mirror"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_says_how_accurate_it_is_without_and_with_its_views(tiny, tmp_path):
    asked = train(tiny(data={"flip": "alternating"}, views="mirror+shift"), tmp_path / "asked")
    plain = train(tiny(data={"flip": "alternating"}), tmp_path / "plain")
    for which in "best", "last":
        with_views, without = getattr(asked, which), getattr(plain, which)
        assert (with_views.sparse, with_views.pruned) == (without.sparse, without.pruned)
        assert without.views is None and 0 <= with_views.views <= 100
    best = evaluate_saved(tmp_path / "asked", views="mirror+shift")
    assert best["accuracy"] == asked.best.views and best["views"] == "mirror+shift"
    assert evaluate_saved(tmp_path / "asked")["accuracy"] == asked.best.sparse
    written = json.loads((tmp_path / "asked" / "summary.json").read_text())
    assert written["views"] == "mirror+shift" and written["last"]["views"] == asked.last.views
    labels = [label for label, _ in asked.rows()]
    assert labels.count("  views mirror+shift") == 2 and len(labels) == len(plain.rows()) + 2
