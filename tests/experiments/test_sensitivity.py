"""Figures 2 and 3: each order is found where it is and not where it is not."""

from __future__ import annotations

from torchswat.experiments.scales import Training


def by_algorithm(**points: float):
    """Accuracies that differ by algorithm, with a little noise from the seed."""
    return lambda t: 60 + points.get(t.algorithm.replace("-", "_"), 0) + 0.1 * t.seed - 5 * t.sparsity


def test_sparse_weights_against_sparse_activations(judge):
    assert judge("2a", by_algorithm(forward_weight=1)) == {"2a.order": True}
    assert judge("2a", by_algorithm(forward_activation=1)) == {"2a.order": False}


def test_a_difference_that_chance_explains_is_no_order(judge):
    def noisy(t: Training) -> float:
        return 60 + (t.algorithm == "saw") * (1.2 if t.seed == 0 else -0.5)

    assert judge("2b", noisy) == {"2b.order": False}
    assert judge("2b", by_algorithm(saw=2)) == {"2b.order": True}


def test_the_training_curves_are_judged_on_imagenet_alone(judge):
    def found(t: Training) -> float:
        return {"dense": 68, "meprop": 66 if t.sparsity < 0.4 else 44, "saw": 64}[t.algorithm]

    whole = {"2c.meprop-30": True, "2c.meprop-50": True, "2c.saw-80": True}
    assert judge("2c", found, "paper") == whole
    assert judge("2c", found) == {**whole, "2c.meprop-50": None, "2c.saw-80": None}
    assert judge("2c", lambda t: 50.0, "paper")["2c.meprop-50"] is False


def test_scopes(judge):
    order = {"nchw": 2, "chw": 1, "hw": 0}

    def found(t: Training) -> float:
        return 60 + order[t.scope] + 0.1 * t.seed - 30 * (t.algorithm == "saw-random") * (t.sparsity > 0.6)

    assert judge("3", found) == {"3.random": True, "3.scope": True}
    assert judge("3", lambda t: 60 - order[t.scope]) == {"3.random": False, "3.scope": False}
    low_only = judge("3", lambda t: found(t) - 60 * (t.algorithm == "saw" and t.sparsity >= 0.8))
    assert low_only["3.random"] is False


def test_three_pairs_are_enough_for_what_is_far_apart_and_too_few_for_noise(judge):
    def found(t: Training, gap: float) -> float:
        return (
            60 - gap * (t.algorithm == "saw-random") + {0: 2.0, 1: -1.5, 2: 0.0}[t.seed] * (t.scope != "nchw")
        )

    assert judge("3", lambda t: found(t, 20), "cpu")["3.random"] is True
    assert judge("3", lambda t: found(t, 1), "cpu")["3.random"] is False
