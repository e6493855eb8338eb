"""Recipes: what comes with the package is what the paper says, and what is wrong is said in one line."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from torchswat.errors import InvalidValue, MissingData, TorchswatError, UnknownName
from torchswat.training.recipe import (
    OptimizerSection,
    Recipe,
    load_recipe,
    make_recipe,
    recipe_keys,
    recipe_names,
)

MINIMAL = {"name": "x", "model": {"name": "m"}, "data": {"name": "d"}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_under_its_name_and_survives_yaml(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.about
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_an_existing_model_algorithm_and_data_set(name):
    from torchswat import data, models
    from torchswat.algorithms import ALGORITHMS

    recipe = load_recipe(name)
    models.info(recipe.model.name, recipe.model.form)
    assert recipe.sparse.algorithm in ALGORITHMS
    assert recipe.data.name in (*data.names(), "imagenette-tiny")


@pytest.mark.parametrize(
    "name, epochs, batch, drops, factor, decay",
    [
        ("cifar-paper", 150, 128, (50, 100), 0.1, 1e-4),
        ("cifar-neurips", 150, 128, (50, 100), 0.1, 5e-4),
        ("densenet-paper", 150, 64, (50, 100), 0.1, 1e-4),
        ("wrn-paper", 200, 128, (60, 120, 160), 0.2, 1e-4),
        ("imagenet-paper", 50, 256, (30, 40), 0.1, 1e-4),
    ],
)
def test_the_papers_settings(name, epochs, batch, drops, factor, decay):
    """Section 3.1 of the paper, and the authors' later code."""
    recipe = load_recipe(name)
    found = recipe.optimizer
    assert (found.epochs, recipe.data.batch_size, found.milestones) == (epochs, batch, drops)
    assert (found.factor, found.weight_decay, found.lr, found.momentum) == (factor, decay, 0.1, 0.9)
    assert not found.nesterov and found.label_smoothing == 0
    assert found.decay_norm == (name != "cifar-neurips")
    assert recipe.sparse.skip == (("first",) if name == "cifar-neurips" else ())


def test_learning_rate_drops_at_the_milestones():
    schedule = load_recipe("wrn-paper").optimizer
    rates = [schedule.lr_at(epoch) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


@given(st.integers(0, 300), st.lists(st.integers(1, 200), unique=True, max_size=4).map(sorted))
def test_learning_rate_never_rises(epoch, milestones):
    schedule = OptimizerSection(milestones=tuple(milestones))
    assert schedule.lr_at(epoch + 1) <= schedule.lr_at(epoch) <= schedule.lr


schedules = st.builds(
    OptimizerSection,
    epochs=st.integers(1, 200),
    schedule=st.sampled_from(["linear", "cosine"]),
    warmup=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
)


@given(schedules, st.integers(1, 50))
def test_a_learning_rate_rises_to_its_peak_and_falls_to_nothing(schedule, steps):
    """At the steps of the training: rising until the warm-up is over, falling after it, 0 at the end."""
    total, end = schedule.epochs * steps, schedule.warmup * schedule.epochs
    moments = sorted(
        {*(step / steps for step in range(0, total + 1, max(1, total // 40))), end, total / steps}
    )
    shares = [schedule.share_at(moment) for moment in moments]
    rising = [share for moment, share in zip(moments, shares, strict=True) if moment <= end]
    falling = [share for moment, share in zip(moments, shares, strict=True) if moment >= end]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert max(shares) == schedule.share_at(end) == pytest.approx(1) and shares[-1] == pytest.approx(0)
    assert all(0 <= share <= 1 for share in shares)
    assert schedule.lr_at(end) == pytest.approx(schedule.lr)


@given(schedules, st.integers(1, 8), st.floats(0, 400))
def test_a_schedule_of_its_own_length_is_over_when_it_ends(schedule, epochs, moment):
    share = schedule.share_at(moment, epochs)
    assert share == pytest.approx(0) if moment >= epochs else 0 <= share <= 1


def test_half_way_down_is_half_the_rate():
    for schedule in "linear", "cosine":
        section = OptimizerSection(epochs=10, schedule=schedule, warmup=0.2)
        assert [section.share_at(epoch) for epoch in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert OptimizerSection(epochs=8, schedule="linear").share_at(2) == 0.75
    assert OptimizerSection(epochs=8, schedule="cosine").share_at(2) == pytest.approx(0.5 + 0.125**0.5)


def test_steps_can_warm_up_as_well():
    section = OptimizerSection(epochs=10, milestones=(5,), warmup=0.1)
    assert [section.share_at(epoch) for epoch in (0, 0.5, 1, 4.9, 5)] == pytest.approx([0, 0.5, 1, 1, 0.1])


def test_overrides_reach_every_section_and_the_last_one_wins():
    recipe = load_recipe(
        "cifar-paper",
        [
            "optimizer.lr=1e-3",
            "optimizer.lr=0.5",
            "sparse.sparsity={layer1.*: 0.5, '*': 0.9}",
            "sparse.skip=[first, fc]",
            "data.train_limit=100",
            "optimizer.milestones=[1, 2]",
            "seed=3",
        ],
    )
    assert recipe.optimizer.lr == 0.5 and recipe.seed == 3 and recipe.data.train_limit == 100
    assert recipe.sparse.sparsity == {"layer1.*": 0.5, "*": 0.9}
    assert recipe.sparse.skip == ("first", "fc") and recipe.optimizer.milestones == (1, 2)


def test_scientific_notation_is_a_number():
    assert load_recipe("cifar-paper", ["optimizer.weight_decay=1e-5"]).optimizer.weight_decay == 1e-5


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lrr=1", "unknown recipe key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        ("optimiser.lr=1", "unknown recipe key 'optimiser': did you mean 'optimizer'?"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("optimizer.lr=-1", "optimizer.lr: should be greater than 0, not -1"),
        ("optimizer.epochs=0", "optimizer.epochs"),
        ("optimizer.epochs=1.5", "optimizer.epochs"),
        ("optimizer.milestones=[2, 1]", "optimizer: milestones should rise, not [2, 1]"),
        ("optimizer.warmup=1", "optimizer.warmup: should be less than 1"),
        ("optimizer.schedule=linear", "milestones are for the schedule 'steps', not for 'linear'"),
        ("optimizer.head_lr=1", "head_lr is for the optimizer 'muon', not for 'sgd'"),
        ("optimizer={name: muon, first_epochs: 2}", "first_epochs needs the schedule 'linear' or 'cosine'"),
        (
            "optimizer={name: muon, nesterov: true, other_momentum: 0}",
            "nesterov needs a momentum above 0",
        ),
        ("optimizer.average=1", "optimizer.average: should be less than 1"),
        ("precision=float16", "precision: should be 'float32' or 'bfloat16'"),
        ("sparse.dense_from=150", "sparse.dense_from should be less than the 150 epochs"),
        ("sparse.sparsity=1", "sparse.sparsity: should be at least 0"),
        ("sparse.sparsity=-0.1", "sparse.sparsity: should be at least 0"),
        ("sparse.sparsity=.nan", "sparse.sparsity: should be at least 0"),
        ("sparse.sparsity=lots", "sparse.sparsity: should be a number"),
        ("sparse.sparsity={fc: 2}", "sparse.sparsity: should be at least 0"),
        ("data.shift=-1", "data.shift"),
        ("data.border=white", "data.border: should be 'black' or 'reflect'"),
        ("data.flip=true", "data.flip: should be 'random', 'alternating' or 'none'"),
        ("data={name: cifar10, augment: false, shift: 2}", "data: shift needs augment: true"),
        ("model=resnet18", "model"),
        ("model.name.x=1", "model.name.x cannot be set"),
        ("seed", "write it as optimizer.lr=0.05"),
        ("seed=[", "the value of seed is not valid YAML"),
        ("model.name=", "model.name"),
    ],
)
def test_a_wrong_override_is_one_line_with_its_path(override, message):
    with pytest.raises((InvalidValue, UnknownName)) as caught:
        load_recipe("cifar-paper", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_recipe_of_the_users_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: {name: resnet20}\ndata: {name: cifar10}\n")
    assert load_recipe(path).model.name == load_recipe(str(path)).model.name == "resnet20"
    assert load_recipe(path).optimizer == OptimizerSection()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"name: [", "not valid YAML"),
        (b"- 1", "should be a YAML mapping"),
        (b"", "should be a YAML mapping"),
        (b"name: x\nmodel: {name: m}", "the recipe lacks data"),
        (b"\xff\xfe\x00", "cannot read"),
        (
            b"name: x\nmodel: {name: m}\ndata: {name: d}\nmodel: {name: n}",
            "the key 'model' stands there twice",
        ),
        (b"name: x\nmodel: {name: m, name: n}\ndata: {name: d}", "the key 'name' stands there twice"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 5000, "not valid YAML"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_broken_recipe_file(content, message, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidValue, match=message):
        load_recipe(path)


def test_missing_and_unknown_recipes(tmp_path):
    with pytest.raises(MissingData, match="no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UnknownName, match="did you mean 'cifar-paper'"):
        load_recipe("cifar-papre")


def test_a_recipe_is_frozen():
    recipe = load_recipe("digits-demo")
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.optimizer.lr = 1


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner))
)
def test_no_value_makes_anything_but_a_recipe_or_our_error(value):
    for key in recipe_keys():
        section, _, name = key.rpartition(".")
        values = {
            **MINIMAL,
            **({section: {**MINIMAL.get(section, {}), name: value}} if section else {key: value}),
        }
        try:
            assert isinstance(make_recipe(values), Recipe)
        except TorchswatError as error:
            assert "\n" not in str(error)
