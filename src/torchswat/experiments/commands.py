"""The command ``torchswat reproduce``: its words, and what it prints."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torchswat.experiments.outcome import Row

console = Console(soft_wrap=True)


def reproduce(
    figures: Annotated[
        list[str], typer.Argument(metavar="FIGURE...", help="Such as 9a, 7, lemma-b1, or all.")
    ],
    scale: Annotated[
        str, typer.Option(help="smoke (seconds), cpu (hours on two cores) or paper (months on a GPU).")
    ] = "cpu",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Trainings of each kind (default: the scale's).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other value of the recipes; noted in the results."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trainings side by side.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of data, figures, verdicts.")] = Path(
        "runs/reproduction"
    ),
    runs: Annotated[Path, typer.Option(help="Folder of the trainings, which are kept and shared.")] = Path(
        "runs/reproduce"
    ),
) -> None:
    """Make figures of the paper again, from runs of this machine, with a verdict on each claim.

    Runs that are there already are not made again, and one that was stopped is continued.

    [dim]Examples:[/dim]
      torchswat reproduce 9a 9b 9c 9d lemma-b1
      torchswat reproduce all --scale smoke
      torchswat reproduce 3 2b --scale cpu --jobs 2
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # what torch's profiler notes about itself helps nobody
    from torchswat.experiments import runs as trainings
    from torchswat.experiments.claims import write_claims
    from torchswat.experiments.outcome import Work
    from torchswat.experiments.registry import experiments
    from torchswat.experiments.scales import scale_of

    chosen = experiments(figures)
    size = scale_of(scale, seeds, tuple(settings or ()))
    changes = ["--scale", scale, *(["--seeds", str(seeds)] if seeds else [])]
    changes += [word for setting in settings or () for word in ("--set", setting)]
    write_claims(output / "claims.json")
    every = [training for experiment in chosen for training in experiment.needs(size)]
    for number, experiment in enumerate(chosen, 1):
        console.print(f"({number}/{len(chosen)}) {experiment.figure}: {experiment.title}", highlight=False)
        needed = experiment.needs(size)
        trained = trainings.complete(needed, size, runs, jobs, console, every) if needed else []
        trainings.copy_records(trained, output / "runs")
        command = shlex.join(["torchswat", "reproduce", experiment.figure, *changes])  # makes this one again
        result = experiment.record(Work(size, trained, runs), output / experiment.figure, command)
        _show(result)
    trainings.copy_measured(runs, output / "runs")
    console.print(
        f"Data, figures and verdicts are in {output}; `torchswat report {output}` makes a page of them."
    )


def _show(result: Row) -> None:
    if not result["claims"]:
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    for claim in result["claims"]:
        table.add_row(claim["verdict"], claim["name"], claim["observed"])
    console.print(table)
