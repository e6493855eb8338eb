"""Results that are alive at the same time never share memory, and little is wasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchswat.runtime.arena import ALIGNMENT, place

pieces = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 5)).map(
        lambda each: (each[0], (each[1], each[1] + each[2]))
    ),
    max_size=25,
)


@given(pieces)
def test_nothing_alive_is_overwritten(drawn):
    sizes, lives = [size for size, _ in drawn], [life for _, life in drawn]
    offsets, total = place(sizes, lives)
    for i, at in enumerate(offsets):
        assert at % ALIGNMENT == 0 and at + sizes[i] <= total
        for j in range(i):
            alive = lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]
            apart = at + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= at
            assert apart or not alive


def test_a_chain_takes_two_pieces():
    _, total = place([640] * 10, [(step, step + 1) for step in range(10)])
    assert total == 2 * 640
