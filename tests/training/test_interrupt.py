"""Signals as requests."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from torchswat.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_a_request_and_the_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_the_second_ends_the_process():
    code = (
        "import signal\n"
        "from torchswat.training.interrupt import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGTERM)\n"
        "    print('here', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('not here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM and done.stdout == "here\n"


def test_in_another_thread_nothing_is_handled():
    outcome = []

    def enter() -> None:
        with StopRequest() as stop:
            outcome.append(stop.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert outcome == [False]
