"""The commands ``torchswat bench ...``, ``benchmark`` and ``plan``: their words, and what they print.

Torch is imported by the commands and not by this module: ``--isa`` must set the environment before torch
reads it, and ``--help`` is there at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from torchswat import options
from torchswat.errors import InvalidValue, UnknownName
from torchswat.options import DEVICES, Json, Threads, among, check_sparsity
from torchswat.terminal import console, messages, print_json

if TYPE_CHECKING:
    from torchswat.bench.record import Record
    from torchswat.engine.timings import Timing

app = typer.Typer(
    help="""Time dense and sparse side by side: products, steps, programs, selection, inference, memory.

    [dim]Examples:[/dim]
      torchswat bench step --quick
      torchswat bench inference --quick
    """,
    no_args_is_help=True,
)
_TABLE_WIDTH = 160

INSTRUCTION_SETS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
"""What holds the dense side to an instruction set; TORCHSWAT_ISA does it for the sparse side."""

Sparsities = Annotated[
    list[float] | None,
    typer.Option(
        *("--sparsity", "-s"),
        min=0,
        max=1,
        callback=check_sparsity,
        help="Sparsity: fraction of entries set to zero. Repeat it for several.",
    ),
]
Repeats = Annotated[int | None, typer.Option(min=1, max=10**6, help="Timed rounds.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few rounds: an estimate in seconds, not a result.")]
Isa = Annotated[
    str | None,
    typer.Option(
        help="Restrict both sides to an instruction set: avx2 or plain (default: the best).",
        autocompletion=among(*options.INSTRUCTION_SETS),
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file; drawings go beside it (default: in runs/bench/)."),
]


@app.command()
def products(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Name of a convolution, or `all`. Repeat it for several (default: the four 3x3)."),
    ] = None,
    sparsity: Sparsities = None,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time forward, grad-input and grad-weight of single convolutions.

    [dim]Examples:[/dim]
      torchswat bench products --shape 3x3-64 --sparsity 0.8 --sparsity 0.9
      torchswat bench products --shape all --output products.json
    """
    _prepare("products", isa, threads, output)
    from torchswat.bench import products as bench
    from torchswat.bench.show import bar

    shapes = bench.STANDARD if not shape else tuple(bench.SHAPES) if shape == ["all"] else tuple(shape)
    bench.check_shapes(shapes)
    rounds = repeats or (3 if quick else 15)
    with bar(messages, "products", bench.rounds(shapes, rounds)) as tick:
        record = bench.bench_products(shapes, sparsity or bench.SPARSITIES, rounds, tick=tick)
    _finish(record, output, as_json)


@app.command()
def step(
    network: Annotated[
        list[str] | None,
        typer.Option(help="Name of a network, or `all`. Repeat it for several (default: resnet18, vgg16)."),
    ] = None,
    sparsity: Sparsities = None,
    selection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD:PERIOD",
            help="How thresholds are found, and every how many iterations; behind it +bfloat16 for autocast and "
            "a block such as +2x2. Repeat it for several (default: histogram:1 and histogram:10, and the first "
            "+bfloat16 and +bfloat16+2x2).",
        ),
    ] = None,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time whole training steps, and say where the time of the sparse ones goes.

    [dim]Examples:[/dim]
      torchswat bench step --network resnet18 --sparsity 0.8
      torchswat bench step --network all --selection histogram:10 --threads 2
    """
    _prepare("step", isa, threads, output)
    from torchswat.bench import step as bench
    from torchswat.bench.show import bar

    networks = tuple(bench.NETWORKS) if network == ["all"] else tuple(network or bench.STANDARD)
    bench.check_networks(networks)
    searches = tuple(map(bench.Search.parse, selection)) if selection else bench.SEARCHES
    rounds = repeats or (3 if quick else 10)
    if quick:
        networks, sparsity = networks if network else networks[:1], sparsity or [0.8]
    with bar(messages, "steps", bench.rounds(networks, rounds)) as tick:
        record = bench.bench_step(networks, sparsity or bench.SPARSITIES, searches, rounds, tick=tick)
    _finish(record, output, as_json)


@app.command()
def roofline(
    network: Annotated[
        list[str] | None,
        typer.Option(help="Name of a network, or `all`. Repeat it for several (default: resnet18)."),
    ] = None,
    sparsity: options.Sparsity = 0.8,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Set the products of a network, and its whole step, against what this machine can do at most.

    [dim]Example:[/dim]
      torchswat bench roofline --network vgg16 --sparsity 0.9
    """
    _prepare("roofline", isa, threads, output)
    from torchswat.bench import roofline as bench
    from torchswat.bench.show import bar
    from torchswat.bench.step import NETWORKS

    networks = tuple(NETWORKS) if network == ["all"] else tuple(network or ("resnet18",))
    rounds = repeats or (2 if quick else 7)
    with bar(messages, "roofline", bench.rounds(networks, rounds)) as tick:
        record = bench.bench_roofline(networks, sparsity, rounds, tick=tick)
    _finish(record, output, as_json)


@app.command()
def selection(
    sparsity: options.Sparsity = 0.8,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time the ways of finding the k-th largest magnitude: ours, torch's and numpy's.

    [dim]Example:[/dim]
      torchswat bench selection --sparsity 0.9
    """
    _prepare("selection", isa, threads, output)
    from torchswat.bench import selection as bench
    from torchswat.bench.show import bar

    rounds = repeats or (2 if quick else 7)
    with bar(messages, "selection", bench.rounds(bench.SIZES, rounds)) as tick:
        record = bench.bench_selection(bench.SIZES, sparsity, rounds, tick=tick)
    _finish(record, output, as_json)


@app.command()
def inference(
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK-BATCH",
            help="Network and batch size, such as resnet18-64. Repeat it for several (default: all).",
        ),
    ] = None,
    sparsity: Sparsities = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Runtime to compare with. Repeat it for several (default: all that are installed)."
        ),
    ] = None,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time whole networks at inference against PyTorch, ONNX Runtime and OpenVINO.

    [dim]Examples:[/dim]
      torchswat bench inference --case resnet18-64 --sparsity 0.8
      torchswat bench inference --quick --json
    """
    _prepare("inference", isa, threads, output)
    from torchswat.bench import inference as bench
    from torchswat.bench.show import bar

    cases, peers = tuple(case or bench.CASES), tuple(peer or bench.PEERS)
    bench.check_names(cases, peers)
    rounds = repeats or (3 if quick else 15)
    if quick:
        cases, sparsity = cases if case else cases[:1], sparsity or [0.8]
    with bar(messages, "inference", bench.rounds(cases, rounds)) as tick:
        record = bench.bench_inference(cases, sparsity or bench.SPARSITIES, rounds, peers, tick=tick)
    _finish(record, output, as_json)


@app.command()
def memory(
    network: Annotated[
        list[str] | None,
        typer.Option(help="Name of a network, or `all`. Repeat it for several (default: resnet18, vgg16)."),
    ] = None,
    sparsity: Sparsities = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, max=2**16, help="Batch size (default: that with which the network is timed)."),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.", autocompletion=among(*DEVICES))] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="One network, SWAT at 0.8 alone: an estimate in half a minute.")
    ] = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure what a training step saves for backward, and its peak memory.

    [dim]Example:[/dim]
      torchswat bench memory --network resnet18 --sparsity 0.8
    """
    _prepare("memory", isa, threads, output)
    from torchswat.bench import memory as bench
    from torchswat.bench.show import bar

    networks = tuple(bench.NETWORKS) if network == ["all"] else tuple(network or bench.STANDARD)
    bench.check_networks(networks)
    algorithms = ("dense", "swat") if quick else tuple(bench.ALGORITHMS)
    if quick:
        networks, sparsity = networks if network else networks[:1], sparsity or [0.8]
    sparsities = sparsity or bench.SPARSITIES
    with bar(messages, "memory", bench.rounds(networks, sparsities, algorithms=algorithms)) as tick:
        record = bench.bench_memory(
            networks, sparsities, algorithms=algorithms, batch_size=batch_size, device=device, tick=tick
        )
    _finish(record, output, as_json)


@app.command()
def programs(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of names, such as `hf-*`. Repeat it for several (default: all)."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Checkout or installation of another version to time in the same run."),
    ] = None,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time training steps of many programs, Hugging Face's among them, and the overhead of small ones.

    [dim]Example:[/dim]
      torchswat bench programs --only 'mlp-*' --quick
    """
    _prepare("programs", isa, threads, output)
    from torchswat.bench.programs import run as bench
    from torchswat.bench.show import bar

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that run the programs
    names, rounds = bench.matching(only or [], quick), repeats or (3 if quick else 15)
    with bar(messages, "programs", bench.rounds(names, rounds)) as tick:
        record = bench.bench_programs(names, rounds, against, tick=tick)
    _finish(record, output, as_json)


def _prepare(benchmark: str, isa: str | None, threads: int | None, output: Path | None) -> None:
    """Start over with the environment of `isa` where that is not in force, set the threads, look at `output`."""
    if isa is not None:
        if isa not in INSTRUCTION_SETS:
            raise UnknownName.of("instruction set", isa, INSTRUCTION_SETS)
        wanted = {"TORCHSWAT_ISA": isa, **INSTRUCTION_SETS[isa]}
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            again = [sys.executable, "-m", "torchswat", *sys.argv[1:]]
            raise typer.Exit(subprocess.run(again, env={**os.environ, **wanted}, check=False).returncode)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # what torch's profiler notes about itself helps nobody
    import torch

    from torchswat.bench.record import refuse_other_file

    if threads is not None:
        torch.set_num_threads(threads)
    if output is not None:
        refuse_other_file(output, benchmark)


def _finish(record: Record, output: Path | None, as_json: bool) -> None:
    """Print the record, as tables or as JSON, then write it and its drawings."""
    from torchswat.bench.show import circumstances_line, tables

    if as_json:
        print_json(asdict(record))
    else:
        for table in tables(record):
            _print_table(table)
        for line in (*record.remarks, circumstances_line(record)):
            console.print(line, markup=False, highlight=False)
    path = output or Path("runs/bench") / f"{time.strftime('%Y%m%d-%H%M%S')}-{record.benchmark}.json"
    record.write(path)
    from torchswat.bench.draw import draw  # last: it needs matplotlib, and the figures are safe by now

    drawings = draw(record, path)
    out = messages if as_json else console
    out.print(f"Written: {', '.join(map(str, [path, *drawings]))}", markup=False, highlight=False)


def _print_table(table: Table) -> None:
    """Print a table with a line below; where the window is narrow it is not cut but goes beyond."""
    Console(soft_wrap=True, width=max(console.width, _TABLE_WIDTH)).print(table, "")


def benchmark(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file that `torchswat export` or torchswat.save wrote.")
    ],
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            *("--batch-size", "-b"),
            min=1,
            max=2**16,
            help="Batch size. Repeat it for several (default: 1 and 16).",
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, max=1024, help="Calls that run at once, each on so many threads.")
    ] = 1,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Runtime to compare with: onnxruntime or openvino. Repeat it for several (default: all that "
            "are installed)."
        ),
    ] = None,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time the network in a file: its layers, what bounds each, and other runtimes with the same network, dense.

    [dim]Examples:[/dim]
      torchswat benchmark network.safetensors
      torchswat benchmark network.safetensors --batch-size 1 --batch-size 64 --threads 2 --json
      torchswat benchmark network.safetensors --threads 1 --streams 2
    """
    _prepare("file", isa, threads, output)
    from torchswat.bench import file as bench
    from torchswat.bench.show import bar

    peers, rounds = tuple(peer or bench.PEERS), repeats or (5 if quick else 25)
    bench.check_peers(peers)
    sizes = tuple(batch_size or ())
    with bar(messages, "rounds", len(sizes or bench.BATCH_SIZES) * (rounds + 1)) as tick:
        record = bench.bench_file(file, sizes, rounds, peers, streams=streams, tick=tick)
    _finish(record, output, as_json)


def plan(
    as_json: Json = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all timings; the cost model decides again.")
    ] = False,
) -> None:
    """Show the tuned plan: the timings of torchswat.tune, and which products run sparse by them.

    [dim]Examples:[/dim]
      torchswat plan
      torchswat plan --clear
    """
    from torchswat.engine import plan as tuned

    path, machines = tuned.path(), tuned.table()
    if clear:
        if as_json:
            raise InvalidValue("--clear prints no JSON; leave out one of --clear and --json.")
        path.unlink(missing_ok=True)
        console.print(f"Removed {sum(map(len, machines.values()))} timings from {path}.", highlight=False)
    elif as_json:
        print_json(
            [
                {"machine": name, "shape": shape, **_both_times(timing), "sparse": _sparse_products(timing)}
                for name, timings in machines.items()
                for shape, timing in timings.items()
            ]
        )
    elif not machines:
        console.print(
            f"Nothing is tuned yet: {path} does not exist or holds no timings. The cost model decides; "
            "torchswat.tune(model, example) measures.",
            highlight=False,
        )
    else:
        for name, timings in machines.items():
            here = " (this machine)" if name == tuned.machine() else ""
            console.print(f"{name}{here}", markup=False, highlight=False)
            _print_table(_plan_table(timings))
        console.print(f"Read from {path}; `torchswat plan --clear` removes it.", highlight=False)


def _both_times(timing: Timing) -> dict[str, dict[str, float]]:
    return {name: {"sparse_ms": sparse, "dense_ms": dense} for name, (sparse, dense) in vars(timing).items()}


def _sparse_products(timing: Timing) -> list[str]:
    return [name for name, is_sparse in vars(timing.choice()).items() if is_sparse]


def _plan_table(timings: dict[str, Timing]) -> Table:
    table = Table(box=None, pad_edge=False, caption="milliseconds, sparse / dense", caption_justify="left")
    table.add_column("shape, sparsity, threads")
    for name in ("forward", "grad input", "grad weight"):
        table.add_column(name, justify="right")
    table.add_column("runs sparse")
    for shape, timing in sorted(timings.items()):
        times = [f"{both['sparse_ms']:.2f} / {both['dense_ms']:.2f}" for both in _both_times(timing).values()]
        table.add_row(shape, *times, ", ".join(_sparse_products(timing)) or "nothing")
    return table
