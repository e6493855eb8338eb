import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data import draws

keys = st.integers(-(2**70), 2**70)


@given(keys, st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 200), st.integers(0, 5))
def test_a_sample_gets_the_same_numbers_in_any_company(seed, purpose, epoch, count, draw_count):
    samples = np.arange(count)
    together = draws.uniform(seed, purpose, epoch, samples, draw_count)
    assert together.shape == (count, draw_count)
    assert ((together >= 0) & (together < 1)).all()
    alone = [draws.uniform(seed, purpose, epoch, samples[[n]], draw_count)[0] for n in range(count)]
    assert (together == np.array(alone).reshape(count, draw_count)).all()


@given(keys, st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 500))
def test_a_permutation_is_one(seed, purpose, epoch, count):
    assert sorted(draws.permutation(seed, purpose, epoch, count)) == list(range(count))


def test_every_key_matters():
    base = draws.hashes(1, 2, 3, np.arange(50))
    for other in (draws.hashes(4, 2, 3, np.arange(50)), draws.hashes(1, 3, 3, np.arange(50)),
                  draws.hashes(1, 2, 4, np.arange(50)), draws.hashes(1, 2, 3, np.arange(50, 100)),
                  draws.hashes(2, 1, 3, np.arange(50))):  # fmt: skip
        assert not np.isin(base, other).any()


def test_the_numbers_are_uniform_and_independent():
    numbers = draws.uniform(0, draws.AUGMENTATION, 0, np.arange(100_000), 3)
    shares = [np.histogram(column, 20, (0, 1))[0] / 100_000 for column in numbers.T]
    np.testing.assert_allclose(shares, 0.05, atol=0.004)  # 6 standard deviations
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.02


def test_the_numbers_never_change():
    """A checkpoint of another version or machine must continue with the same data."""
    assert draws.hashes(0, 0, 0, np.array([0, 1])).tolist() == [2391539541053276776, 3048674281419798293]
    assert draws.permutation(7, draws.ORDER, 2, 8).tolist() == [0, 5, 4, 6, 1, 3, 7, 2]
