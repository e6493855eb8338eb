"""What is shown: a bar on a terminal, a line an epoch elsewhere, a table at the end."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from torchswat.training.display import Display, summary_table
from torchswat.training.finish import Accuracy, Summary
from torchswat.training.run_folder import EpochMetrics

ROW = EpochMetrics(1, 11, 0.1, 2.5, 10.0, 2.25, 12.5, 1.5, 1000.0)


def show(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with Display(console, epochs=2, steps_per_epoch=11) as display:
        display.step(epoch=1, step=5, loss=2.5, accuracy=10.0, images_per_second=1000.0)
        display._bar.refresh()
        display.epoch(ROW)
    return console.file.getvalue()


def test_a_line_an_epoch():
    assert show(terminal=False) == (
        "epoch 1/2  lr 0.1  train loss 2.5000  10.00%  test loss 2.2500  12.50%  1000 images/s\n"
    )


def test_a_bar_on_a_terminal():
    shown = show(terminal=True)
    for part in ("epoch 1/2", "5/22", "loss 2.5000", "10.00%", "1000 images/s", "test loss"):
        assert part in shown


def summary(title: str, measured: float) -> Summary:
    count = {"dense": 4e6, "formula": 1e6, "measured": measured}
    cost = {"macs": count, "weights": count, "activations": count}
    return Summary(title, Accuracy(3, 91.234, 91.234), Accuracy(4, 90.0, 89.0), 2, cost, 10.0)


def test_the_table():
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table([summary("dense", 4e6), summary("swat 80%", 1e6)]))
    shown = console.file.getvalue()
    assert "91.23%" in shown and "89.00%" in shown and "500 k (4.00x less)" in shown and "swat 80%" in shown
    assert shown.count("x less") == 3  # and none for dense


def test_the_table_of_a_run_with_views():
    one = replace(summary("swat 80%", 1e6), views="mirror", last=Accuracy(4, 90.0, 89.0, 90.5))
    assert one.rows()[:4] == [
        ("test accuracy, last epoch", "90.00%"),
        ("  pruned", "89.00%"),
        ("  views mirror", "90.50%"),
        ("test accuracy, best epoch", "91.23%"),
    ]


def test_the_summary_survives_json():
    import json

    one = summary("swat 80%", 1e6)
    assert Summary.from_json(json.loads(json.dumps(one.to_json()))) == one
