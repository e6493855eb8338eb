"""The commands that show: what there is, what it costs, and what this machine makes of it."""

from __future__ import annotations

from typing import Annotated

import typer

from torchswat.options import (
    LARGEST,
    Algorithm,
    DataRoot,
    Form,
    Json,
    Network,
    Skip,
    Sparsity,
)
from torchswat.terminal import bar, console, print_json, print_rows


def models(as_json: Json = False) -> None:
    """List the networks.

    [dim]Example:[/dim]
      torchswat models
    """
    from torchswat.models.registry import MODELS

    rows = [
        {"name": model.name, "form": model.form, "parameters": model.parameters, "summary": model.summary}
        for model in MODELS
    ]
    print_rows(rows, as_json)


def algorithms(as_json: Json = False) -> None:
    """List the algorithms: which operands each makes sparse, and of which product.

    [dim]Example:[/dim]
      torchswat algorithms
    """
    from torchswat.algorithms import ALGORITHMS

    if as_json:
        print_json([{"name": row.name, "summary": row.summary, **row.slots()} for row in ALGORITHMS.values()])
        return
    rows = []
    for row in ALGORITHMS.values():
        sparse = [slot.replace("_", " ") for slot, how in row.slots().items() if how]
        rows.append({"name": row.name, "summary": row.summary, "sparse operands": ", ".join(sparse) or "-"})
    print_rows(rows, as_json=False)


def data(
    data_root: DataRoot = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file and compare its md5: takes seconds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the data sets, and whether they are found.

    [dim]Examples:[/dim]
      torchswat data
      torchswat data --data-root images --check
    """
    from torchswat import data as sets
    from torchswat.progress import counted

    root, rows = sets.data_root(data_root), []
    with bar("reading") as progress:
        for name in counted(sets.names(), progress if check else None):
            if check:
                status = sets.check(name, root)
                state = f"{status.state}: {status.detail}" if status.detail else status.state
            else:
                state = sets.state(name, root)
            rows.append({"name": name, "state": state, "summary": sets.info(name).summary})
    print_rows(rows, as_json)


def summary(
    model: Network,
    form: Form = None,
    algorithm: Algorithm = "swat",
    sparsity: Sparsity = 0.8,
    skip: Skip = None,
    batch_size: Annotated[int, typer.Option(min=1, max=2**16, help="Images in a step.")] = 128,
    as_json: Json = False,
) -> None:
    """Show what every layer is (sparse, fused, dense and why), and the expected time of a training step.

    [dim]Examples:[/dim]
      torchswat summary --model resnet18 --sparsity 0.9
      torchswat summary --model vgg16 --skip first --skip last --json
    """
    with bar("running the network") as progress:
        import torch

        from torchswat import models
        from torchswat.convert import sparsify_
        from torchswat.fuse import fuse_
        from torchswat.summaries import summary as summarise

        info = models.info(model, form)
        torch.manual_seed(0)
        network = models.create(model, form=form)
        sparsify_(network, algorithm, sparsity, skip=tuple(skip or ()))
        fuse_(network)
        example = torch.randn(batch_size, info.in_channels, info.image_size, info.image_size)
        found = summarise(network, example, progress=progress)
    if as_json:
        print_json(found.to_dict())
    else:
        console.print(str(found), highlight=False, markup=False)


def cost(
    model: Network,
    form: Form = None,
    algorithm: Algorithm = "swat",
    sparsity: Sparsity = 0.8,
    skip: Skip = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, max=2**16, help="Height and width of the images, in pixels.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=LARGEST, help="Images in a step.")] = 1,
    as_json: Json = False,
) -> None:
    """Count the operations and bytes of one training step, layer by layer: counted, not timed.

    [dim]Examples:[/dim]
      torchswat cost --model resnet18 --sparsity 0.9
      torchswat cost --model resnet50 --form imagenet --skip first --json
    """
    with bar("counting") as progress:
        import torch

        from torchswat import models
        from torchswat.accounting import cost as count
        from torchswat.convert import sparsify_

        info = models.info(model, form)
        torch.manual_seed(0)
        network = models.create(model, form=form)
        sparsify_(network, algorithm, sparsity, skip=tuple(skip or ()))
        size = input_size or info.image_size
        counted = count(network, torch.randn(batch_size, info.in_channels, size, size), progress=progress)
    if as_json:
        print_json(counted.to_dict())
    else:
        console.print(str(counted), highlight=False, markup=False)


def doctor(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Show what torchswat finds on this machine, and what is slow and why, each with its remedy.

    Processor, instruction set, cores and threads, OpenMP, allocator, the build of torch, the native engine, the
    tuned plan, data sets and optional libraries.

    [dim]Examples:[/dim]
      torchswat doctor
      torchswat doctor --json
    """
    from torchswat.doctor import examine

    diagnosis = examine(data_root)
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        console.print(str(diagnosis), highlight=False, markup=False)
