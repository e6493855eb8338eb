"""The command ``torchswat reproduce``: its words, and what it prints."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchswat.options import FIGURES, SCALES, Json, among
from torchswat.progress import counted
from torchswat.terminal import bar, console, messages, print_json

if TYPE_CHECKING:
    from torchswat.experiments.outcome import Experiment, Row
    from torchswat.experiments.scales import Scale, Training


def reproduce(
    figures: Annotated[
        list[str],
        typer.Argument(
            metavar="FIGURE...",
            help="Figure of the paper, such as 9a, 7 or lemma-b1; or all.",
            autocompletion=among(*FIGURES, "all"),
        ),
    ],
    scale: Annotated[
        str,
        typer.Option(
            help="smoke (seconds), cpu (days on two cores) or paper (months on a GPU).",
            autocompletion=among(*SCALES),
        ),
    ] = "cpu",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Trainings of each kind (default: the scale's).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            *("--set",),
            metavar="KEY=VALUE",
            help="Any other value of the recipes, as YAML; noted in the results. Repeat it for several.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=1024, help="Trainings side by side.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of data, figures and verdicts.")
    ] = Path("runs/reproduction"),
    runs: Annotated[Path, typer.Option(help="Folder of the trainings, which are kept and shared.")] = Path(
        "runs/reproduce"
    ),
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print which runs there are and how long the others take; start none."
        ),
    ] = False,
    no_train: Annotated[
        bool,
        typer.Option("--no-train", help="Draw what can be drawn of the runs that are finished; start none."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make figures of the paper again, from runs of this machine, with a verdict on each claim.

    Runs that are there already are not made again, and one that was stopped is continued. All figures are drawn
    when the trainings of a seed have ended, first with the first seed alone.

    [dim]Examples:[/dim]
      torchswat reproduce 9a 9b 9c 9d lemma-b1
      torchswat reproduce all --scale smoke
      torchswat reproduce time-to-accuracy --scale cpu --dry-run
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # what torch's profiler notes about itself helps nobody
    from torchswat.experiments import runs as trainings
    from torchswat.experiments.claims import write_claims
    from torchswat.experiments.registry import experiments
    from torchswat.experiments.scales import scale_of

    chosen = experiments(figures)
    size = scale_of(scale, seeds, tuple(settings or ()))
    if dry_run:
        _forecast(chosen, size, runs, as_json)
        return
    changes = ["--scale", scale, *(["--seeds", str(seeds)] if seeds else [])]
    changes += [word for setting in settings or () for word in ("--set", setting)]
    write_claims(output / "claims.json")
    out = messages if as_json else console
    drawing = _Drawing(size, runs, output, changes, out)
    exact, trained = [e for e in chosen if e.exact], [e for e in chosen if not e.exact]
    drawing.draw(exact)
    for experiment in trained:
        if experiment.timing:
            with bar(f"timing steps for {experiment.figure}", out):
                experiment.timing.measure(size, runs)
    every = list(dict.fromkeys(t for experiment in trained for t in experiment.needs(size, runs)))
    for seed in () if no_train else size.seeds:
        needed = [training for training in every if training.seed == seed]
        if len(trainings.finished(needed, size, runs)) < len(needed):
            trainings.complete(needed, size, runs, jobs, out, every)
            if seed != size.seeds[-1]:
                drawing.draw(trained)
    drawing.draw(trained)
    if as_json:
        print_json(list(drawing.results.values()))
    out.print(
        f"Data, figures and verdicts are in {output}; `torchswat report {output}` makes a page of them."
    )


class _Drawing:
    """Makes figures of the runs that are there; ``results`` holds what was found, by figure."""

    def __init__(self, scale: Scale, runs: Path, output: Path, changes: list[str], out: Console) -> None:
        self.scale, self.runs, self.output, self.changes, self.out = scale, runs, output, changes, out
        self.results: dict[str, Row] = {}

    def draw(self, chosen: list[Experiment]) -> None:
        """Write data, figure and verdicts of each experiment, with the records of its runs."""
        from torchswat.experiments import runs as trainings

        with bar("figures", self.out) as progress:
            for experiment in counted(chosen, progress):
                self._draw(experiment)
        trainings.copy_measured(self.runs, self.output / "runs")

    def _draw(self, experiment: Experiment) -> None:
        from torchswat.experiments import runs as trainings
        from torchswat.experiments.outcome import Work

        needed = experiment.needs(self.scale, self.runs)
        trained = trainings.finished(needed, self.scale, self.runs)
        partly = f" ({len(trained)} of {len(needed)} runs)" if len(trained) < len(needed) else ""
        self.out.print(f"{experiment.figure}: {experiment.title}{partly}", highlight=False)
        if needed and not trained:
            return
        trainings.copy_records(trained, self.output / "runs")
        command = shlex.join(["torchswat", "reproduce", experiment.figure, *self.changes])
        result = experiment.record(
            Work(self.scale, trained, self.runs), self.output / experiment.figure, command
        )
        self.results[experiment.figure] = result
        _show(result, self.out)


def _forecast(chosen: list[Experiment], scale: Scale, runs: Path, as_json: bool) -> None:
    """Print what each figure needs, kind by kind, and what all of them together do."""
    from torchswat.experiments.forecast import forecast
    from torchswat.experiments.step_times import seconds_of_an_epoch

    lines = [("runs", "finished", "epochs to do", "time of training")]
    rows: list[dict[str, Any]] = []

    def add(what: str, trainings: list[Training]) -> None:
        left = forecast(trainings, scale, runs, [seconds_of_an_epoch(runs)])
        rows.append({"what": what.strip(), **vars(left)})
        lines.append((what, f"{left.finished} of {left.runs}", str(left.epochs), left.time))

    every: list[Training] = []
    for experiment in chosen:
        needed = experiment.needs(scale, runs)
        if experiment.exact:
            continue
        add(experiment.figure, needed)
        kinds: dict[str, list[Training]] = {}
        for training in needed:
            place = f"{scale.network(training.network)}, {scale.stands_for(training.data)}"
            kinds.setdefault(f"  {place}: {training.kind()}", []).append(training)
        for kind, mine in kinds.items():
            add(kind, mine)
        every += needed
    add("together, shared runs once", every)
    if as_json:
        print_json(rows)
        return
    if not every:
        console.print("Nothing is trained for these: they take minutes.")
        return
    width = max(len(what) for what, *_ in lines)
    for what, finished, epochs, time in lines:
        console.print(f"{what:{width}}  {finished:>9}  {epochs:>12}  {time}", highlight=False, markup=False)
    for experiment in chosen:
        if experiment.timing and experiment.timing.read(scale, runs) is None:
            console.print(f"{experiment.figure} first times steps; more trainings follow from what it finds.")


def _show(result: Row, out: Console) -> None:
    if not result["claims"]:
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    for claim in result["claims"]:
        table.add_row(claim["verdict"], claim["name"], claim["observed"])
    out.print(table)
