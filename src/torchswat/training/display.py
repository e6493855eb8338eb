"""What a person sees of a run: a bar while an epoch runs, a line when it ends, a table when all is done."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from torchswat.training.finish import Summary
from torchswat.training.run_folder import EpochMetrics


class Display:
    """Shows a run on a console: with a bar on a terminal, with a line an epoch anywhere else.

    Examples
    --------
    >>> with Display(Console(width=100), epochs=1, steps_per_epoch=11) as display:
    ...     display.epoch(EpochMetrics(1, 11, 0.1, 2.3, 10.0, 2.2, 12.5, 1.0, 1400.0))
    epoch 1/1  lr 0.1  train loss 2.3000  10.00%  test loss 2.2000  12.50%  1400 images/s
    """

    def __init__(self, console: Console, epochs: int, steps_per_epoch: int) -> None:
        self._console = console
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[accuracy]:.2f}%"),
            TextColumn("{task.fields[speed]:.0f} images/s  ends in"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        fields = {"epoch": "-", "loss": float("nan"), "accuracy": 0.0, "speed": 0.0}
        self._task = self._bar.add_task("", total=epochs * steps_per_epoch, **fields)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Move the bar: `step` steps are done, the rest is of the epoch under way (counted from 1)."""
        self._bar.update(
            self._task,
            completed=step,
            epoch=f"{epoch}/{self._epochs}",
            loss=loss,
            accuracy=accuracy,
            speed=images_per_second,
        )

    def epoch(self, row: EpochMetrics) -> None:
        """Print the line of an epoch."""
        average = "" if row.average_accuracy is None else f"  averaged {row.average_accuracy:.2f}%"
        self._bar.console.print(
            f"epoch {row.epoch}/{self._epochs}  lr {row.learning_rate:.4g}"
            f"  train loss {row.train_loss:.4f}  {row.train_accuracy:.2f}%"
            f"  test loss {row.test_loss:.4f}  {row.test_accuracy:.2f}%{average}"
            f"  {row.images_per_second:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )


def summary_table(summaries: list[Summary]) -> Table:
    """The final table of one run, or of several side by side.

    Multiply-accumulates and bytes are those of one training step, counted and not timed; bytes are of
    values, without the positions at which they stand. "Pruned" is the network with exact zeros in plain dense
    modules.
    """
    table = Table(
        caption="best epoch: chosen on the test images; operations and bytes: of a training step, counted",
        caption_justify="left",
    )
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.title, justify="right")
    for same_row in zip(*(summary.rows() for summary in summaries), strict=True):
        table.add_row(same_row[0][0], *(text for _, text in same_row))
    return table
