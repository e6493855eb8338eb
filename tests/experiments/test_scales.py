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
    assert {"width 16 (paper: as published)", "data cifar10 (paper: cifar100)"} <= set(said)
    assert any(change.startswith("epochs ") and "(paper: 150)" in change for change in said)
    assert not any(change.startswith(("sparse.", "learning rate 0")) for change in said)


def test_reductions_of_some_trainings_name_them():
    said = reductions(
        SCALES["cpu"], [replace(SWAT, data=data, own_data=True) for data in ("cifar10", "cifar100")]
    )
    assert "width 16 (paper: as published)" in said
    assert any(s.startswith("epochs") and s.endswith("(paper: 150) [cifar100]") for s in said)


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
    assert SWAT.folder_name(cpu).startswith("resnet18x16-cifar10-swat-80-s0-")


def test_a_comparison_of_data_sets_has_its_own_data():
    own = replace(SWAT, own_data=True).recipe(SCALES["cpu"])
    assert (own.data.name, own.data.train_limit, own.optimizer.epochs) == ("cifar100", 5000, 5)
    assert SWAT.recipe(SCALES["cpu"]).data.name == "cifar10"
    shorter = scale_of("cpu", settings=("optimizer.epochs=2", "optimizer.milestones=[1]"))
    assert replace(SWAT, own_data=True).recipe(shorter).optimizer.epochs == 2
    # CIFAR-10 stands for itself in any case, so figures share those runs
    ten = replace(SWAT, data="cifar10")
    assert ten.folder_name(SCALES["cpu"]) == replace(ten, own_data=True).folder_name(SCALES["cpu"])


def test_another_number_of_seeds():
    assert scale_of("cpu", seeds=5).seeds == (0, 1, 2, 3, 4)
    assert scale_of("cpu").seeds == (0, 1, 2)


def test_what_does_not_exist_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'cpu'"):
        scale_of("cpus")
    with pytest.raises(InvalidValue, match="write it as"):
        SWAT.recipe(scale_of("cpu", settings=("nonsense",)))
