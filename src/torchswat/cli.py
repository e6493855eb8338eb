"""The command line: commands, their words and their errors. What they do is done elsewhere.

Exit codes: 0 done, 1 the run failed, 2 something the user got wrong, 130 interrupted. Torch is imported by
the commands and not by this module, so that ``--help`` is there at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from torchswat.errors import CheckpointError, InvalidValue, NotFinite, TorchswatError
from torchswat.training.interrupt import Interrupted

INSTALL = 'pip install "torchswat[train]"'
try:
    import typer
    from rich.console import Console
    from rich.table import Table

    from torchswat.bench import commands as bench
    from torchswat.deploy import commands as deploy
    from torchswat.experiments import commands as experiments
    from torchswat.report import commands as pages
except ModuleNotFoundError as missing:
    print(
        f"torchswat: the command line needs {missing.name}, which is not installed: {INSTALL}",
        file=sys.stderr,
    )
    sys.exit(2)

if TYPE_CHECKING:
    from torchswat.training.finish import Summary

app = typer.Typer(
    name="torchswat",
    help="Train networks with sparse weights and activations (SWAT).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench.app, name="bench")
app.command()(bench.plan)
app.command()(experiments.reproduce)
app.command()(pages.report)
for command in (deploy.export, deploy.predict, deploy.serve):
    app.command()(command)
console = Console(soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Root = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with the data sets (default: $TORCHSWAT_DATA).")
]


def main() -> None:
    """Run the command line and end the process; the one place where errors become messages."""
    from torchswat.engine.allocator import tune_allocator

    tune_allocator()
    try:
        app()
    except Interrupted as error:
        _leave(error, code=130)
    except (NotFinite, CheckpointError) as error:
        _leave(error, code=1)
    except TorchswatError as error:
        _leave(error, code=2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "torchswat":
            raise
        _leave(f"{error.name} is needed for this and is not installed: {INSTALL}", code=2)
    except OSError as error:
        _leave(error, code=1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _leave(f"not enough memory: {error} A smaller batch or a narrower network needs less.", code=1)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has an exception of its own for GPUs only."""
    kinds = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def _leave(problem: object, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"torchswat: {problem}", markup=False, highlight=False)
    sys.exit(code)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Name (see `recipes`) or a YAML file of yours.")
    ] = "digits-demo",
    model: Annotated[str | None, typer.Option(help="Network; see `models`.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set (see `data`), or a folder of pictures.")] = None,
    data_root: Root = None,
    algorithm: Annotated[str | None, typer.Option(help="See `algorithms`.")] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="Share set to zero, such as 0.8; or {pattern: share, ...} by layer.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="nchw, chw or hw: what the Top-K is counted over.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How the k-th largest is found.")] = None,
    period: Annotated[str | None, typer.Option(help="Iterations between searches for it.")] = None,
    skip: Annotated[
        str | None, typer.Option(help="Layers to leave dense: first, last, patterns; by commas.")
    ] = None,
    epochs: Annotated[str | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images a step, over all processes.")] = None,
    lr: Annotated[str | None, typer.Option(help="Initial learning rate.")] = None,
    seed: Annotated[str | None, typer.Option(help="Everything random is drawn from it.")] = None,
    analyse: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Record threshold, angle and density of each layer every so many steps."
        ),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave image files out that cannot be read.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other value of the recipe.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run (default: a new one in runs/).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue the run in this folder.")
    ] = None,
) -> None:
    """Train a network as a recipe says, or continue a run that was stopped.

    [dim]Examples:[/dim]
      torchswat train --recipe cifar-paper --algorithm swat --sparsity 0.9
      torchswat train --recipe fashion-mnist --epochs 2 --set optimizer.momentum=0.8
      torchswat train --resume runs/20260102-030405-cifar-paper
    """
    flags = {
        "model.name": model,
        "data.name": data,
        "data.root": data_root,
        "sparse.algorithm": algorithm,
        "sparse.sparsity": sparsity,
        "sparse.scope": scope,
        "sparse.method": method,
        "sparse.period": period,
        "sparse.skip": None if skip is None else json.dumps(skip),
        "optimizer.epochs": epochs,
        "data.batch_size": batch_size,
        "optimizer.lr": lr,
        "seed": seed,
        "analysis.every_steps": analyse,
        "data.broken_images": "skip" if skip_broken else None,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None] + (settings or [])
    if resume is not None:
        if overrides or output is not None:
            given = ", ".join(overrides) or f"--output {output}"
            raise InvalidValue(f"--resume continues a run exactly as it was begun; leave out {given}")
        _resume(resume)
        return
    from torchswat.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    from torchswat.training import loop
    from torchswat.training.run_folder import choose_folder

    folder = output or choose_folder(checked)
    _show([loop.train(checked, folder, console=console)], folder)


def _resume(folder: Path) -> None:
    from torchswat.training import loop

    _show([loop.resume(folder, console=console)], folder)


def _show(summaries: list[Summary], folder: Path) -> None:
    from torchswat.training.display import summary_table
    from torchswat.training.processes import is_main_process

    if is_main_process():
        console.print(summary_table(summaries))
        console.print(f"Everything about the run is in {folder}; the learning curves are curves.png.")


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the runs (default: a new one in runs/).")
    ] = None,
) -> None:
    """Train on real images, dense and with SWAT at 80%, and compare: about a minute on two cores.

    Fashion-MNIST where it is found (see `data`), else the digits that come with scikit-learn.
    """
    from torchswat import data as sets
    from torchswat.training import loop
    from torchswat.training.plot import plot_comparison
    from torchswat.training.recipe import load_recipe
    from torchswat.training.run_folder import RunFolder, choose_folder

    name = "digits-demo" if sets.info("fashion-mnist").missing(sets.data_root()) else "fashion-demo"
    recipe = load_recipe(name)
    folder = output or choose_folder(recipe)
    summaries = []
    for algorithm in ("dense", "swat"):
        console.print(f"{algorithm}: {recipe.about}", highlight=False)
        one = load_recipe(name, [f"sparse.algorithm={algorithm}"])
        summaries.append(loop.train(one, folder / algorithm, console=console))
    _show(summaries, folder / "swat")
    runs = {
        s.title: RunFolder(folder / a).metrics() for a, s in zip(("dense", "swat"), summaries, strict=True)
    }
    console.print(f"Both runs over the epochs: {plot_comparison(runs, folder)}")


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Of a run, the best checkpoint.")],
    data: Annotated[str | None, typer.Option(help="Other data than it was trained on.")] = None,
    data_root: Root = None,
    pruned: Annotated[bool, typer.Option("--pruned", help="Prune first, to a plain dense network.")] = False,
    views: Annotated[
        str,
        typer.Option(
            help="plain, mirror or mirror+shift: average the scores over these views of each image "
            "(test-time augmentation)."
        ),
    ] = "plain",
    as_json: Json = False,
) -> None:
    """Test accuracy of a trained network."""
    from torchswat.training.reload import evaluate_saved

    result = evaluate_saved(path, data=data, root=data_root, pruned=pruned, views=views)
    if as_json:
        _print_json(result)
    else:
        kind = "pruned network" if pruned else "sparse network"
        over = "" if views == "plain" else f" over views {views}"
        console.print(
            f"{kind}, {result['images']} test images of {result['data']}: "
            f"accuracy {result['accuracy']:.2f}%, loss {result['loss']:.4f}{over}  ({result['checkpoint']})",
            highlight=False,
        )


@app.command()
def cost(
    model: Annotated[str, typer.Option(help="Network; see `models`.")],
    form: Annotated[str | None, typer.Option(help="cifar, imagenet or digits.")] = None,
    algorithm: Annotated[str, typer.Option(help="See `algorithms`.")] = "swat",
    sparsity: Annotated[float, typer.Option(help="Share set to zero.")] = 0.8,
    skip: Annotated[str, typer.Option(help="Layers to leave dense: first, last, patterns; by commas.")] = "",
    input_size: Annotated[
        int | None, typer.Option(min=1, max=2**16, help="Height and width of the images, in pixels.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Images in the step.")] = 1,
    as_json: Json = False,
) -> None:
    """Operations and bytes of one training step, layer by layer: counted, not timed."""
    import torch

    from torchswat import models
    from torchswat.accounting import cost as count
    from torchswat.convert import sparsify_

    info = models.info(model, form)
    torch.manual_seed(0)
    network = models.create(model, form=form)
    patterns = tuple(part.strip() for part in skip.split(",") if part.strip())
    sparsify_(network, algorithm, sparsity, skip=patterns)
    size = input_size or info.image_size
    counted = count(network, torch.randn(batch_size, info.in_channels, size, size))
    if as_json:
        _print_json(counted.to_dict())
    else:
        console.print(str(counted), highlight=False, markup=False)


@app.command()
def summary(
    model: Annotated[str, typer.Option(help="Network; see `models`.")],
    form: Annotated[str | None, typer.Option(help="cifar, imagenet or digits.")] = None,
    algorithm: Annotated[str, typer.Option(help="See `algorithms`.")] = "swat",
    sparsity: Annotated[float, typer.Option(help="Fraction of entries set to zero.")] = 0.8,
    skip: Annotated[str, typer.Option(help="Layers to leave dense: first, last, patterns; by commas.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, max=2**16, help="Images in the step.")] = 128,
    as_json: Json = False,
) -> None:
    """What every layer is (sparse, fused, dense and why), and the speed expected of a training step."""
    import torch

    from torchswat import models
    from torchswat.convert import sparsify_
    from torchswat.fuse import fuse_
    from torchswat.summaries import summary as summarise

    info = models.info(model, form)
    torch.manual_seed(0)
    network = models.create(model, form=form)
    sparsify_(network, algorithm, sparsity, skip=tuple(p.strip() for p in skip.split(",") if p.strip()))
    fuse_(network)
    found = summarise(network, torch.randn(batch_size, info.in_channels, info.image_size, info.image_size))
    if as_json:
        _print_json(found.to_dict())
    else:
        console.print(str(found), highlight=False, markup=False)


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks."""
    from torchswat.models.registry import MODELS

    rows = [
        {"name": model.name, "form": model.form, "parameters": model.parameters, "summary": model.summary}
        for model in MODELS
    ]
    _print_rows(rows, as_json)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms: which tensor each makes sparse, and where."""
    from torchswat.algorithms import ALGORITHMS

    if as_json:
        _print_json(
            [{"name": row.name, "summary": row.summary, **row.slots()} for row in ALGORITHMS.values()]
        )
        return
    rows = []
    for row in ALGORITHMS.values():
        sparse = [slot.replace("_", " ") for slot, how in row.slots().items() if how]
        rows.append({"name": row.name, "summary": row.summary, "sparse operands": ", ".join(sparse) or "-"})
    _print_rows(rows, as_json)


@app.command()
def data(
    data_root: Root = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file and compare its md5: seconds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the data sets and whether they are there."""
    from torchswat import data as sets

    root = sets.data_root(data_root)
    rows = []
    for name in sets.names():
        source = sets.info(name)
        if check:
            status = sets.check(name, root)
            state = f"{status.state}: {status.detail}" if status.detail else status.state
        else:
            there = not source.missing(root) if source.files else (root / name).is_dir()
            state = "built in" if not source.page else "found" if there else "missing"
        rows.append({"name": name, "state": state, "summary": source.summary})
    _print_rows(rows, as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes."""
    from torchswat.training.recipe import load_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "about": recipe.about,
                "model": recipe.model.name,
                "data": recipe.data.name,
                "epochs": recipe.optimizer.epochs,
            }
        )
    _print_rows(rows, as_json)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=2))


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows that share their keys, as a table or as JSON."""
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int) else "left")
    for row in rows:
        table.add_row(*[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()])
    console.print(table)
