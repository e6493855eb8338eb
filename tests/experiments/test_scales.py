"""Scales: recipes that can be run, and folders named after all that matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torchswat import models
from torchswat.errors import InvalidValue, UnknownName
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES, Training, reductions, scale_of

SWAT = Training("resnet18", "cifar100", "swat", 0.8, seed=0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("figure", EXPERIMENTS)
def test_every_training_has_a_recipe_of_networks_that_exist(figure, scale):
    size = SCALES[scale]
    needed = EXPERIMENTS[figure].needs(size)
    assert len(needed) == len(set(needed))
    for training in needed:
        recipe = training.recipe(size)
        assert models.info(recipe.model.name, recipe.model.form)
        assert recipe.sparse.algorithm == training.algorithm and recipe.seed == training.seed
        assert recipe.analysis.every_steps


def test_at_paper_scale_nothing_is_reduced():
    for experiment in EXPERIMENTS.values():
        for training in experiment.needs(SCALES["paper"]):
            assert training.reductions(SCALES["paper"]) == []


def test_reductions_are_said():
    said = SWAT.reductions(SCALES["cpu"])
    assert "network airbench (paper: resnet18)" in said and "epochs 8 (paper: 150)" in said
    assert "layers left dense: first, last (paper: none)" in said
    assert sum("optimizer" in change or "rate" in change for change in said) == 1, (
        "the recipe's, as one change"
    )
    assert not any(change.startswith(("data", "model.", "sparse.")) for change in said), (
        "the data are the paper's"
    )


def test_reductions_of_some_trainings_name_them():
    said = reductions(
        SCALES["cpu"],
        [replace(SWAT, network="vgg16"), SWAT, replace(SWAT, network="resnet50")],
    )
    assert "epochs 8 (paper: 150)" in said
    assert "width 32 (paper: as published) [resnet50]" in said


def test_a_shortened_training_hides_no_reduction():
    short = replace(SWAT, settings=("optimizer.epochs=5",))
    assert "epochs 8 (paper: 150)" in reductions(SCALES["cpu"], [SWAT, short])


def test_folders_differ_where_results_do_and_only_there():
    cpu = SCALES["cpu"]
    names = {
        training.folder_name(cpu)
        for training in (SWAT, replace(SWAT, seed=1), replace(SWAT, sparsity=0.5), replace(SWAT, scope="hw"))
    }
    names |= {SWAT.folder_name(scale_of("cpu", settings=("optimizer.epochs=4",)))}
    assert len(names) == 5
    same = ("threads=1", "checkpoint.every_steps=7", "data.root=elsewhere")
    assert SWAT.folder_name(scale_of("cpu", settings=same)) == SWAT.folder_name(cpu)
    assert SWAT.folder_name(cpu).startswith("airbench-cifar100-swat-80-s0-")


def test_settings_of_a_training_are_part_of_it():
    start = replace(SWAT, settings=("sparse.dense_from=6",))
    assert start.recipe(SCALES["cpu"]).sparse.dense_from == 6
    assert start.folder_name(SCALES["cpu"]).startswith("airbench-cifar100-swat-80-dense-from-6-s0-")
    assert start.kind() == "swat 80 %, dense from 6" and SWAT.kind() == "swat 80 %"
    asked = replace(SWAT, settings=("optimizer.epochs=5",))
    assert asked.recipe(scale_of("cpu", settings=("optimizer.epochs=7",))).optimizer.epochs == 5


def test_a_key_that_is_new_renames_no_folder():
    """What a recipe does not say is not part of the name, so runs outlive keys that come after them."""
    recipe = SWAT.recipe(SCALES["smoke"])
    told = replace(SWAT, settings=(f"sparse.period={recipe.sparse.period}",))
    assert told.folder_name(SCALES["smoke"])[-8:] == SWAT.folder_name(SCALES["smoke"])[-8:]


@pytest.mark.parametrize("figure", EXPERIMENTS)
def test_the_first_seed_comes_first(figure):
    seeds = [training.seed for training in EXPERIMENTS[figure].needs(SCALES["cpu"])]
    assert seeds == sorted(seeds)


def test_another_number_of_seeds():
    assert scale_of("cpu", seeds=5).seeds == (0, 1, 2, 3, 4)
    assert scale_of("cpu").seeds == (0, 1, 2)


def test_what_does_not_exist_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'cpu'"):
        scale_of("cpus")
    with pytest.raises(InvalidValue, match="write it as"):
        SWAT.recipe(scale_of("cpu", settings=("nonsense",)))
