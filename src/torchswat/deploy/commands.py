"""The commands ``torchswat export``, ``predict`` and ``serve``: their words, and what they print."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchswat.errors import InvalidData, InvalidValue, MissingDependency

console = Console(soft_wrap=True)
_WIDEST = 10_000  # characters of a line
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads (default: torch's choice).")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `torchswat export` wrote.")]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Of a run, the best checkpoint.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the files (default: export/ in the run).")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="sparse (default), dense, onnx, program or all; several times."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Folder with the data sets (default: $TORCHSWAT_DATA).")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Compare predictions of every file with the trained network's on all test images."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a trained network, pruned, into small files that answer fast.

    [dim]sparse[/dim] is for `predict`, `serve` and torchswat.load; [dim]dense[/dim] is a state_dict with
    exact zeros; [dim]onnx[/dim] is for other runtimes; [dim]program[/dim] is one of torch.export.
    """
    from torchswat.deploy.export import FORMATS, export_run

    wanted = tuple(FORMATS) if formats and "all" in formats else tuple(formats or ("sparse",))
    exported = export_run(run, output, wanted, root=data_root, check=check)
    if as_json:
        print(json.dumps(vars(exported), indent=2))
        return
    for name, file in exported.files.items():
        line = f"{name}: {file['path']}, {file['bytes'] / 1e6:.2f} MB, {file['smaller']:.2f}x less than dense"
        if exported.images:
            line += f"; {file['differing']} predictions differ, scores by {file['largest_gap']:.1e} at most"
        console.print(line, markup=False, highlight=False)
    if exported.images:
        console.print(
            f"Compared with the trained network, accuracy {exported.accuracy:.2f}%, on all "
            f"{exported.images} test images.",
            highlight=False,
        )


def predict(
    model: Model,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Picture files or folders.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads (default: torch's choice).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is on pictures, with probabilities."""
    import torch

    from torchswat.deploy.predict import find_pictures
    from torchswat.deploy.predict import predict as guess
    from torchswat.runtime.network import load

    if threads is not None:
        torch.set_num_threads(threads)
    _expect_large_pictures()
    rows: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False)
    for name in ("picture", "class", "probability"):
        table.add_column(name, justify="right" if name == "probability" else "left")
    for file, found in guess(load(model), find_pictures(pictures), top):
        if isinstance(found, InvalidData):
            rows.append({"picture": str(file), "error": str(found)})
            print(f"torchswat: {found}", file=sys.stderr)
            continue
        rows.append({"picture": str(file), "guesses": [each.to_json() for each in found]})
        for place, each in enumerate(found):
            table.add_row("" if place else str(file), each.name, f"{100 * each.probability:.1f}%")
    if as_json:
        print(json.dumps(rows, indent=2))
    elif table.row_count:
        Console(width=_WIDEST).print(table, markup=False, highlight=False)  # no name is cut
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _expect_large_pictures() -> None:
    """Let Pillow not warn of pictures that are refused anyway, in words of ours."""
    warnings.filterwarnings("ignore", message="Image size", module="PIL")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Files that `torchswat export` wrote, as FILE or NAME=FILE."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a body, at most.")] = 10 * 2**20,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Images in a batch, at most.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Images in the queue, at most.")] = 256,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections, at most.")] = 1000,
    header_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds for the headers of a request to arrive.")
    ] = 10,
    body_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for a body to arrive.")] = 30,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads (default: torch's choice).")
    ] = None,
) -> None:
    """Answer over HTTP: image files at POST /predict, tensors by the KServe v2 protocol, and a page to try it.

    Examples:

      torchswat serve runs/first/export/network.safetensors

      torchswat serve digits=digits.safetensors birds=birds.safetensors --port 9000
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f'serving needs {error.name}, which is not installed: pip install "torchswat[serve]"'
        ) from error
    import torch

    from torchswat.deploy.service import Limits
    from torchswat.deploy.service import serve as run
    from torchswat.runtime.network import load

    if threads is not None:
        torch.set_num_threads(threads)
    _expect_large_pictures()
    networks = {name: load(path) for name, path in _named(models).items()}
    limits = Limits(
        bytes=max_bytes,
        seconds=body_seconds,
        header_seconds=header_seconds,
        connections=max_connections,
        batch=max_batch,
        room=max_waiting,
    )
    run(networks, host, port, limits, lambda address: print(f"Listening on {address}", flush=True))


def _named(models: list[str]) -> dict[str, Path]:
    """Return the files of models by name: what stands before ``=``, else the name of the file."""
    found: dict[str, Path] = {}
    for model in models:
        name, given, file = model.partition("=")
        path = Path(file if given else model)
        name = name if given else path.stem
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise InvalidValue(
                f"the model's name is {name!r:.60}; allowed are letters, digits, '-', '_' and '.'."
            )
        if name in found:
            raise InvalidValue(f"two models are called {name!r}; name them, as in one={path} other=FILE.")
        found[name] = path
    return found
