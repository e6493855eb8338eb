"""The commands ``torchswat demo``, ``train`` and ``evaluate``: their words, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchswat.errors import InvalidValue
from torchswat.options import (
    DATA_SETS,
    LARGEST,
    METHODS,
    MODELS,
    SCOPES,
    VIEWS,
    DataRoot,
    Json,
    Skip,
    among,
    check_number,
    check_sparsity,
    complete_algorithm,
    complete_recipe,
)
from torchswat.terminal import bar, console, messages, print_json, print_rows

if TYPE_CHECKING:
    from torchswat.training.finish import Summary

NETWORK = "Network and data"
SPARSE = "Sparsity"
OPTIMIZER = "Optimizer"
RUN = "Run"


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the runs (default: a new one in runs/).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on real images, dense and with SWAT at 80 %, and compare: about a minute on two cores.

    Fashion-MNIST where it is found (see `data`), else the digits that come with scikit-learn.

    [dim]Example:[/dim]
      torchswat demo
    """
    from torchswat import data as sets
    from torchswat.training import loop
    from torchswat.training.plot import plot_comparison
    from torchswat.training.recipe import load_recipe
    from torchswat.training.run_folder import RunFolder, choose_folder

    out = messages if as_json else console
    name = "digits-demo" if sets.info("fashion-mnist").missing(sets.data_root()) else "fashion-demo"
    recipe = load_recipe(name)
    folder = output or choose_folder(recipe)
    summaries = {}
    for algorithm in ("dense", "swat"):
        out.print(f"{algorithm}: {recipe.about}", highlight=False)
        one = load_recipe(name, [f"sparse.algorithm={algorithm}"])
        summaries[folder / algorithm] = loop.train(one, folder / algorithm, console=out)
    _show(summaries, as_json)
    runs = {summary.title: RunFolder(path).metrics() for path, summary in summaries.items()}
    out.print(f"Both runs over the epochs: {plot_comparison(runs, folder)}")


def train(
    recipe: Annotated[
        str,
        typer.Option(
            *("--recipe", "-r"),
            help="Name (see `recipes`), or a YAML file of yours.",
            autocompletion=complete_recipe,
        ),
    ] = "digits-demo",
    model: Annotated[
        str | None,
        typer.Option(help="Network; see `models`.", autocompletion=among(*MODELS), rich_help_panel=NETWORK),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set (see `data`), or a folder of images.",
            autocompletion=among(*DATA_SETS),
            rich_help_panel=NETWORK,
        ),
    ] = None,
    data_root: DataRoot = None,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken", help="Leave image files out that cannot be read.", rich_help_panel=NETWORK
        ),
    ] = False,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="Algorithm; see `algorithms`.", autocompletion=complete_algorithm, rich_help_panel=SPARSE
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            *("--sparsity", "-s"),
            min=0,
            max=1,
            callback=check_sparsity,
            help="Sparsity: fraction of entries set to zero. By layer: "
            "--set 'sparse.sparsity={layer1.*: 0.5, \"*\": 0.9}'.",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="What the Top-K is counted over: nchw, chw or hw.",
            autocompletion=among(*SCOPES),
            rich_help_panel=SPARSE,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How the k-th largest magnitude is found.",
            autocompletion=among(*METHODS),
            rich_help_panel=SPARSE,
        ),
    ] = None,
    period: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST,
            help="Iterations between two searches for the threshold.",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    block: Annotated[
        tuple[int, int] | None,
        typer.Option(
            min=1,
            max=8,
            metavar="FILTERS CHANNELS",
            help="Select weights in blocks of so many filters and input channels: 1, 2, 4 or 8 each.",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    skip: Skip = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Passes over the training images.", rich_help_panel=OPTIMIZER),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST, help="Images in a step, over all processes.", rich_help_panel=OPTIMIZER
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e38,
            callback=check_number,
            help="Initial learning rate, above 0.",
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Seed of all random numbers.", rich_help_panel=RUN),
    ] = None,
    analyse: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST,
            metavar="STEPS",
            help="Record threshold, angle and density of each layer every so many steps.",
            rich_help_panel=RUN,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other value of the recipe, as YAML. Repeat it for several.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the run (default: a new one in runs/).", rich_help_panel=RUN
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Continue the run in this folder.", rich_help_panel=RUN),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network as a recipe says, or continue a run that was stopped.

    [dim]Examples:[/dim]
      torchswat train --recipe cifar-paper --algorithm swat --sparsity 0.9
      torchswat train --recipe cifar-paper --skip first --skip last
      torchswat train --recipe fashion-mnist --epochs 2 --set optimizer.momentum=0.8
      torchswat train --recipe cifar-paper --set 'sparse.sparsity={layer1.*: 0.5, "*": 0.9}'
      torchswat train --resume runs/20260102-030405-cifar-paper
    """
    flags: dict[str, Any] = {
        "model.name": model,
        "data.name": data,
        "data.root": None if data_root is None else str(data_root),
        "sparse.algorithm": algorithm,
        "sparse.sparsity": sparsity,
        "sparse.scope": scope,
        "sparse.method": method,
        "sparse.period": period,
        "sparse.block": block,
        "sparse.skip": skip or None,
        "optimizer.epochs": epochs,
        "data.batch_size": batch_size,
        "optimizer.lr": lr,
        "seed": seed,
        "analysis.every_steps": analyse,
        "data.broken_images": "skip" if skip_broken else None,
    }
    # JSON is YAML, and quotes what YAML would take for something else.
    overrides = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    overrides += settings or []
    out = messages if as_json else console
    if resume is not None:
        if overrides or output is not None:
            given = ", ".join(overrides) or f"--output {output}"
            raise InvalidValue(f"--resume continues a run exactly as it was begun; leave out {given}")
        from torchswat.training import loop

        _show({resume: loop.resume(resume, console=out)}, as_json)
        return
    from torchswat.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    from torchswat.training import loop
    from torchswat.training.run_folder import choose_folder

    folder = output or choose_folder(checked)
    _show({folder: loop.train(checked, folder, console=out)}, as_json)


def _show(summaries: dict[Path, Summary], as_json: bool) -> None:
    """Print the final table of runs, by their folders."""
    from torchswat.training.display import summary_table
    from torchswat.training.processes import is_main_process

    if not is_main_process():
        return
    if as_json:
        runs = [{"folder": str(folder), **one.to_json()} for folder, one in summaries.items()]
        print_json(runs if len(runs) > 1 else runs[0])
        return
    console.print(summary_table(list(summaries.values())))
    console.print(
        f"Everything about the run is in {list(summaries)[-1]}; the learning curves are curves.png."
    )


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run (its best checkpoint), or a file."),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Another data set than that of the training.", autocompletion=among(*DATA_SETS)),
    ] = None,
    data_root: DataRoot = None,
    pruned: Annotated[bool, typer.Option("--pruned", help="Prune first, to a plain dense network.")] = False,
    views: Annotated[
        str,
        typer.Option(
            help="plain, mirror or mirror+shift: average the scores over these views of each image "
            "(test-time augmentation).",
            autocompletion=among(*VIEWS),
        ),
    ] = "plain",
    as_json: Json = False,
) -> None:
    """Print the test accuracy of a trained network.

    [dim]Examples:[/dim]
      torchswat evaluate runs/20260102-030405-cifar-paper
      torchswat evaluate runs/20260102-030405-cifar-paper --pruned --json
    """
    with bar("evaluating") as progress:
        from torchswat.training.reload import evaluate_saved

        result = evaluate_saved(
            path, data=data, root=data_root, pruned=pruned, views=views, progress=progress
        )
    if as_json:
        print_json(result)
        return
    kind = "pruned network" if pruned else "sparse network"
    over = "" if views == "plain" else f" over views {views}"
    console.print(
        f"{kind}, {result['images']} test images of {result['data']}: "
        f"accuracy {result['accuracy']:.2f}%, loss {result['loss']:.4f}{over}  ({result['checkpoint']})",
        highlight=False,
    )


def recipes(as_json: Json = False) -> None:
    """List the recipes: whole trainings, as data.

    [dim]Example:[/dim]
      torchswat recipes
    """
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
    print_rows(rows, as_json)
