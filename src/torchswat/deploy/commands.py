"""The commands that make files of networks, and use them: their words, and what they print."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchswat.errors import InvalidData, InvalidValue, MissingDependency
from torchswat.options import FORMATS, LARGEST, DataRoot, Json, Threads, among
from torchswat.terminal import bar, console, messages, print_json

_WIDEST = 10_000  # characters of a line
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `torchswat export` wrote.")]


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run (its best checkpoint), or a file."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the files (default: export/ in the run).")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            *("--format", "-f"),
            help="sparse (default), dense, onnx, program or all. Repeat it for several.",
            autocompletion=among(*FORMATS, "all"),
        ),
    ] = None,
    data_root: DataRoot = None,
    check: Annotated[
        bool,
        typer.Option(help="Compare predictions of every file with the trained network's on all test images."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a trained network, pruned, into small files for inference.

    [dim]sparse[/dim] is for `predict`, `serve` and torchswat.load; [dim]dense[/dim] is a state_dict with
    exact zeros; [dim]onnx[/dim] is for other runtimes; [dim]program[/dim] is one of torch.export.

    [dim]Examples:[/dim]
      torchswat export runs/20260102-030405-cifar-paper
      torchswat export runs/20260102-030405-cifar-paper --format sparse --format onnx
    """
    with bar("exporting") as progress:
        from torchswat.deploy.export import FORMATS, export_run

        wanted = tuple(FORMATS) if formats and "all" in formats else tuple(formats or ("sparse",))
        exported = export_run(run, output, wanted, root=data_root, check=check, progress=progress)
    if as_json:
        print_json(vars(exported))
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


def import_onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (default: FILE.safetensors).")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="Sizes of an input that the file leaves open, as NAME=1,3,224,224. Repeat it for several.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read an ONNX file, pruned or not, and write it as a file of this runtime.

    Zeros among its weights cost nothing then. Sparse initializers are read, and quantized networks, in float32.

    [dim]Examples:[/dim]
      torchswat import model.onnx
      torchswat import model.onnx -o network.safetensors --shape images=1,3,224,224
    """
    from torchswat.runtime.graph import shape_text
    from torchswat.runtime.onnx_reader import read_onnx
    from torchswat.runtime.saving import write

    package = read_onnx(file, _shapes(shapes or []))
    path = output or file.with_suffix(".safetensors")
    write(package, path)
    weights = [tensor for tensor in package.tensors.values() if tensor.dtype == "float32" and tensor.ndim > 1]
    zeros, all_of_them = (
        sum(int(count(tensor)) for tensor in weights)
        for count in (lambda t: (t == 0).sum(), lambda t: t.size)
    )
    found = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "operations": len(package.graph.nodes),
        "inputs": {each.name: list(each.shape) for each in package.graph.inputs},
        "sparsity": zeros / max(1, all_of_them),
    }
    if as_json:
        print_json(found)
        return
    takes = ", ".join(f"{each.name} {shape_text(each.shape)}" for each in package.graph.inputs)
    console.print(
        f"{path}: {found['bytes'] / 1e6:.2f} MB, {found['operations']} operations, sparsity "
        f"{found['sparsity']:.2f}; takes {takes}",
        markup=False,
        highlight=False,
    )


def _shapes(given: list[str]) -> dict[str, tuple[int, ...]]:
    """Return shapes by the name of the input, from ``NAME=1,3,224,224``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for each in given:
        name, _, sizes = each.rpartition("=")
        numbers = sizes.split(",")
        if not name or not all(size.isdecimal() and 0 < int(size) < 2**31 for size in numbers):
            raise InvalidValue(f"the shape is {each!r:.60}; allowed is NAME=1,3,224,224")
        shapes[name] = tuple(map(int, numbers))
    return shapes


def quantize(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Option(
            help="Image files, or folders of them, like those that it will meet. Repeat it for several."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write (default: MODEL-int8.safetensors)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let the convolutions of a network multiply numbers of 8 bits: int8 weights, uint8 activations.

    Ranges of activations are chosen by up to 512 of the images, spread over all of them; no labels are needed.

    [dim]Examples:[/dim]
      torchswat quantize network.safetensors --images photos/
      torchswat quantize network.safetensors --images photos/ -o small.safetensors
    """
    path = output or model.with_name(f"{model.stem}-int8.safetensors")
    with bar("quantizing") as progress:
        from torchswat.deploy.predict import Reader, find_pictures
        from torchswat.deploy.quantize import CALIBRATED, batches
        from torchswat.runtime.network import load
        from torchswat.runtime.quantize import quantize as write

        _expect_large_images()
        files = find_pictures(images)
        files = files[:: -(-len(files) // CALIBRATED)]
        network = load(model)
        write(model, path, batches(Reader(network), files, network.package.about, progress))
    found = {"path": str(path), "bytes": path.stat().st_size, "bytes_before": model.stat().st_size}
    found["images"] = len(files)
    if as_json:
        print_json(found)
        return
    console.print(
        f"{path}: {found['bytes'] / 1e6:.2f} MB, {found['bytes_before'] / 1e6:.2f} MB before; ranges by "
        f"{len(files)} images",
        markup=False,
        highlight=False,
    )


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files or folders.")],
    top: Annotated[int, typer.Option(min=1, max=LARGEST, help="Classes to name.")] = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Print the most probable classes of images.

    [dim]Examples:[/dim]
      torchswat predict network.safetensors photo.jpg
      torchswat predict network.safetensors photos/ --top 1 --json
    """
    with bar("predicting") as progress:
        import torch

        from torchswat.deploy.predict import find_pictures
        from torchswat.deploy.predict import predict as guess
        from torchswat.runtime.network import load

        if threads is not None:
            torch.set_num_threads(threads)
        _expect_large_images()
        network, files = load(model), find_pictures(images)
        found = []
        for done, one in enumerate(guess(network, files, top), start=1):
            found.append(one)
            progress(done, len(files))
    rows: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False)
    for name in ("image", "class", "probability"):
        table.add_column(name, justify="right" if name == "probability" else "left")
    for file, guesses in found:
        if isinstance(guesses, InvalidData):
            rows.append({"image": str(file), "error": str(guesses)})
            messages.print(f"torchswat: {guesses}", markup=False, highlight=False)
            continue
        rows.append({"image": str(file), "guesses": [each.to_json() for each in guesses]})
        for place, each in enumerate(guesses):
            table.add_row("" if place else str(file), each.name, f"{100 * each.probability:.1f}%")
    if as_json:
        print_json(rows)
    elif table.row_count:
        Console(width=_WIDEST).print(table, markup=False, highlight=False)  # no name is cut
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _expect_large_images() -> None:
    """Keep Pillow from warning of images that are refused anyway, in words of ours."""
    warnings.filterwarnings("ignore", message="Image size", module="PIL")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Files that `torchswat export` wrote, as FILE or NAME=FILE."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    max_bytes: Annotated[int, typer.Option(min=1, max=LARGEST, help="Most bytes of a body.")] = 10 * 2**20,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Most images in a batch.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, max=LARGEST, help="Most images in the queue.")] = 256,
    max_connections: Annotated[int, typer.Option(min=1, max=LARGEST, help="Most open connections.")] = 1000,
    header_seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds for the headers of a request to arrive.")
    ] = 10,
    body_seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds for a body to arrive.")
    ] = 30,
    threads: Threads = None,
) -> None:
    """Serve over HTTP: images at POST /predict, tensors by the KServe v2 protocol, metrics, and a page to try it.

    [dim]Examples:[/dim]
      torchswat serve network.safetensors
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
    _expect_large_images()
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
