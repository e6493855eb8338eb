from __future__ import annotations

import time

from torchswat.training.timed import timed


def test_the_wait_is_counted_and_the_work_between_is_not():
    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    seconds = []
    for waited, number in timed(slow()):
        assert number == len(seconds)
        seconds.append(waited)
        time.sleep(0.2)
    assert all(0.02 <= waited < 0.2 for waited in seconds) and len(seconds) == 3
