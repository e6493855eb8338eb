"""The tables of the benchmarks, and a bar while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from torchswat.bench.race import Tick
from torchswat.bench.record import Record, Row


@contextmanager
def bar(console: Console, title: str, total: int) -> Iterator[Tick]:
    """Show a progress bar of `total` rounds on a terminal, and give what moves it."""
    columns = TextColumn(title), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    # Drawn between rounds only: a thread that redraws it all the time would take its share of what is timed.
    bar = Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    )
    with bar as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.update(task, advance=1, refresh=True)


def tables(record: Record) -> list[Table]:
    """Return the tables of a record."""
    if record.benchmark == "products":
        return [_products(record.rows), _means(record.summary)]
    if record.benchmark == "step":
        return [_steps(record.rows), _parts(record.rows)]
    if record.benchmark == "roofline":
        return [_roofline(record.rows), _bounds(record.summary)]
    if record.benchmark == "programs":
        return [_programs(record.rows)]
    if record.benchmark == "memory":
        return [_memory(record.rows), *_layers(record.rows)]
    if record.benchmark == "inference":
        return [_inference(record.rows)]
    if record.benchmark == "file":
        return [_file(record), *_file_layers(record.rows)]
    return [_selection(record.rows)]


def circumstances_line(record: Record) -> str:
    """Return the most important circumstances as one line."""
    facts = record.circumstances
    dirty = " (changed since)" if str(facts["git_commit"]).endswith("-dirty") else ""
    commit = str(facts["git_commit"]).removesuffix("-dirty")
    allocator = "tuned" if facts["allocator_tuned"] else "as it comes"
    how = (
        "bytes of each storage once; peak: the larger of two steps"
        if record.benchmark == "memory"
        else f"medians of {facts['repeats']}, ± is the distance of the quartiles"
    )
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"engine {facts['engine']['engine']} {facts['engine']['isa'] or ''}; torch {facts['torch']}; "
        f"allocator {allocator}; commit {commit}{dirty}; load before {facts['load']}; "
        f"{how}"
    )


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in words:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _products(rows: list[Row]) -> Table:
    bfloat16 = any(row.get("bfloat16_ms") for row in rows)
    sparseprop = any(row["sparseprop_ms"] for row in rows)
    narrow = ("dense bf16 ms", "bf16 ms", "speed-up", "blocks 2x2", "speed-up")
    optional = narrow * bfloat16 + ("sparseprop ms",) * sparseprop
    table = _table(
        "Products: sparse (all included) against dense in its faster layout",
        ("shape", "product"),
        (
            "S",
            "dense ms",
            "sparse ms",
            "of it packing",
            "speed-up",
            "limit",
            "GFLOP/s",
            "equivalent",
            *optional,
        ),
    )
    for row in rows:
        extra = [_ms(row["sparseprop_ms"])] * sparseprop
        if bfloat16:
            times = [_ms(row["dense_bfloat16_ms"])]
            for key in ("bfloat16", "blocks"):
                times += [_ms(row[f"{key}_ms"]), f"{row[f'{key}_speed_up']:.2f}x"]
            extra = times + extra
        table.add_row(
            row["shape"],
            row["product"],
            f"{row['sparsity']:g}",
            _ms(row["dense_ms"], row["dense_spread"]),
            _ms(row["sparse_ms"], row["sparse_spread"]),
            _ms(row["packing_ms"]),
            f"{row['speed_up']:.2f}x",
            f"{row['limit']:.3g}x",
            f"{row['gflops_nonzero']:.0f}",
            f"{row['gflops_equivalent']:.0f}",
            *extra,
        )
    table.caption = (
        "packing: weights packed or activations compressed; GFLOP/s: on the nonzeros; equivalent: as if dense"
    )
    table.caption_justify = "left"
    return table


def _means(summary: list[Row]) -> Table:
    narrow = (
        ("bfloat16_speed_up", "blocks_speed_up") if any("blocks_speed_up" in row for row in summary) else ()
    )
    more = ("in bfloat16", "in blocks") if narrow else ()
    table = _table("Geometric mean", (), ("S", "products", "speed-up", "target", "limit", *more))
    for row in summary:
        table.add_row(
            f"{row['sparsity']:g}",
            str(row["products"]),
            f"{row['speed_up']:.2f}x",
            _times(row["target"]),
            f"{row['limit']:.3g}x",
            *(_times(row.get(key)) for key in narrow),
        )
    return table


def _steps(rows: list[Row]) -> Table:
    table = _table(
        "Training steps, all costs in",
        ("network", "algorithm", "layout or selection"),
        ("S", "step ms", "images/s", "speed-up", "over bfloat16", "target", "limit"),
    )
    for row in rows:
        table.add_row(
            f"{row['network']} x{row['batch_size']}",
            row["algorithm"],
            row["how"],
            "" if row["sparsity"] is None else f"{row['sparsity']:g}",
            _ms(row["step_ms"], row["spread"]),
            f"{row['images_per_second']:.0f}",
            f"{row['speed_up']:.2f}x",
            _times(row.get("speed_up_over_bfloat16")),
            _times(row.get("target")),
            _times(row.get("limit")),
        )
    table.caption = (
        "selection: METHOD:PERIOD, its mean over a period; speed-up: over the faster dense layout in float32, and over "
        "dense bfloat16"
    )
    table.caption_justify = "left"
    return table


def _roofline(rows: list[Row]) -> Table:
    table = _table(
        "Sparse products and their limits",
        ("network", "sizes", "product"),
        ("layers", "S", "ms", "operations ms", "bytes ms", "of its limit", "GFLOP/s"),
    )
    for row in rows:
        table.add_row(
            *(row["network"], row["sizes"], row["product"]),
            *(str(row["layers"]), f"{row['sparsity']:g}", _ms(row["ms"], row["spread"])),
            *(_ms(row["operations_ms"]), _ms(row["bytes_ms"])),
            *(_percent(row["reached"]), f"{row['gflops']:.0f}"),
        )
    table.caption = (
        "operations: on entries kept, at the peak of registers; bytes: operands and result once, at the rate of a "
        "copy in memory; of its limit: the larger of the two over ms"
    )
    table.caption_justify = "left"
    return table


def _bounds(summary: list[Row]) -> Table:
    table = _table(
        "A whole step over its lower bound: both limits together, of all sparse layers",
        ("network",),
        ("batch", "S", "operations ms", "bytes ms", "step ms", "over bound", "asked", "dense ms"),
    )
    for row in summary:
        table.add_row(
            *(row["network"], str(row["batch_size"]), f"{row['sparsity']:g}"),
            *(_ms(row["operations_ms"]), _ms(row["bytes_ms"]), _ms(row["step_ms"], row["spread"])),
            *(f"{row['over_bound']:.2f}x", f"{row['target']:g}x", _ms(row["dense_ms"])),
        )
    return table


def _programs(rows: list[Row]) -> Table:
    """A line a contestant; the columns of comparisons that nobody made are left out."""
    others = [
        (title, key)
        for title, key in (
            ("over compiled dense", "over_compiled"),
            ("over other version", "over_against"),
            ("asked", "asked_over_against"),
            ("over float32", "over_float32"),
            ("asked", "asked_over_float32"),
        )
        if any(row[key.removeprefix("asked_")] for row in rows)
    ]
    outside = any(row["outside_kernels"] for row in rows)
    titles = *(title for title, _ in others), *["outside kernels"] * outside
    table = _table(
        "Programs at a sparsity of 0.8, all costs in",
        ("program", "contestant"),
        ("ms", "speed-up", "quartiles", "asked", *titles),
    )
    for row in rows:
        low, high = row["speed_up_quartiles"]
        asked = _times(row["asked"])
        if row.get("asked_ms"):
            asked = f"{1000 * row['asked_ms']:g} us"
        table.add_row(
            row["program"],
            row["contestant"],
            _ms(row["step_ms"], row["spread"]),
            f"{row['speed_up']:.2f}x",
            f"{low:.2f}-{high:.2f}",
            asked,
            *(_times(row[key]) for _, key in others),
            *[_percent(row["outside_kernels"])] * outside,
        )
    table.caption = "speed-up: over the faster dense layout; quartiles: of the ratios within a round" + (
        "; outside kernels: the time of the tiny step over that of the full one" if outside else ""
    )
    table.caption_justify = "left"
    return table


def _inference(rows: list[Row]) -> Table:
    table = _table(
        "Inference, float32",
        ("network", "runtime"),
        ("S", "ms a batch", "images/s", "speed-up", "target", "limit"),
    )
    for row in rows:
        table.add_row(
            f"{row['network']} x{row['batch_size']}",
            row["how"],
            "" if row["sparsity"] is None else f"{row['sparsity']:g}",
            _ms(row["ms"], row["spread"]),
            f"{row['images_per_second']:.0f}",
            "" if row["speed_up"] is None else f"{row['speed_up']:.2f}x",
            _times(row["target"]),
            _times(row["limit"]),
        )
    table.caption, table.caption_justify = "speed-up: over the fastest of the others", "left"
    return table


def _file(record: Record) -> Table:
    streams = record.circumstances["streams"]
    table = _table(
        record.circumstances["file"] + (f", {streams} calls at once" if streams > 1 else ""),
        ("runtime",),
        ("batch size", "ms a batch", "95th percentile", "a second", "speed-up", "differs by"),
    )
    for row in record.rows:
        table.add_row(
            row["how"],
            str(row["batch_size"]),
            _ms(row["ms"], row["spread"]),
            _ms(row["ms_95"]),
            f"{row['per_second']:.0f}",
            _times(row["speed_up"]),
            "" if row["gap"] is None else f"{row['gap']:.1e}",
        )
    table.caption = "speed-up: over the fastest of the others; differs by: as a share of the largest output"
    table.caption_justify = "left"
    return table


MOST_LAYERS = 20  # in a table; a result's file has them all


def _file_layers(rows: list[Row]) -> list[Table]:
    """A table for each batch size: the layers that take longest."""
    return [_of_layers(row["layers"], row["batch_size"]) for row in rows if "layers" in row]


def _of_layers(layers: list[Row], size: int) -> Table:
    table = _table(
        f"Layers, batch size {size}",
        ("layer", "operation", "runs in", "bound by"),
        ("kept", "ms", "share", "GFLOP/s", "GB/s", "of peak"),
    )
    total = sum(row["ms"] for row in layers)
    longest = sorted(layers, key=lambda row: -row["ms"])
    for row in longest[:MOST_LAYERS]:
        table.add_row(
            row["layer"] if len(row["layer"]) <= 40 else "…" + row["layer"][-39:],
            row["operation"],
            row["runs_in"],
            row["bound"],
            "" if row["kept"] is None else f"{row['kept']:.2f}",
            _ms(row["ms"]),
            f"{100 * row['ms'] / total:.1f}%",
            f"{row['operations'] / row['ms'] / 1e6:.1f}" if row["operations"] else "",
            f"{row['bytes'] / row['ms'] / 1e6:.1f}" if row["bytes"] else "",
            f"{100 * row['bound_ms'] / row['ms']:.0f}%",
        )
    rest = longest[MOST_LAYERS:]
    if rest:
        ms = sum(row["ms"] for row in rest)
        table.add_row(f"{len(rest)} others", "", "", "", "", _ms(ms), f"{100 * ms / total:.1f}%", "", "", "")
    table.caption = (
        "bound by: what takes longest at measured peaks; overhead where that is less than a tenth of it"
    )
    table.caption_justify = "left"
    return table


def _parts(rows: list[Row]) -> Table:
    """The breakdown of the sparse steps, in shares of the step as the profiler saw it."""
    sparse = [row for row in rows if "breakdown_ms" in row]
    kinds = list(sparse[0]["breakdown_ms"]) if sparse else []
    table = _table("Where a sparse step goes (%)", ("network", "how"), ("S", *kinds, "finding"))
    table.caption = "finding: selection, and packing where it was measured apart; target: 2 at most"
    table.caption_justify = "left"
    for row in sparse:
        total = sum(row["breakdown_ms"].values())
        shares = [f"{100 * ms / total:.1f}" for ms in row["breakdown_ms"].values()]
        finding = f"{100 * row['finding_share']:.1f}"
        table.add_row(row["network"], row["how"], f"{row['sparsity']:g}", *shares, finding)
    return table


def _selection(rows: list[Row]) -> Table:
    table = _table(
        "Finding the k-th largest magnitude",
        ("method",),
        ("entries", "S", "ms", "GB/s", "density found"),
    )
    for row in sorted(rows, key=lambda row: (-row["entries"], row["ms"])):
        table.add_row(
            row["method"],
            f"{row['entries']:,}",
            f"{row['sparsity']:g}",
            _ms(row["ms"], row["spread"]),
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['density']:.4f}",
        )
    return table


def _memory(rows: list[Row]) -> Table:
    table = _table(
        "Memory of a training step",
        ("network", "algorithm", "batch norm's input"),
        (
            *("S", "activations MB", "fewer", "target", "weights read MB", "fewer", "target"),
            *("peak MB", "by the bytes kept"),
        ),
    )
    for row in rows:
        table.add_row(
            f"{row['network']} x{row['batch_size']}",
            row["algorithm"],
            row["norm_input"],
            "" if row["sparsity"] is None else f"{row['sparsity']:g}",
            _megabytes(row["activations"]),
            f"{row['fewer_activations']:.2f}x",
            _times(row["activation_target"]),
            _megabytes(row["weights_read"]),
            f"{row['fewer_weights']:.2f}x",
            _times(row["weight_target"]),
            _megabytes(row["peak"]),
            _megabytes(row["peak_by_bytes"]),
        )
    table.caption = (
        "saved for backward, positions and masks included; peak: of the step above the idle process; "
        "by the bytes kept: the dense peak less what is kept less"
    )
    table.caption_justify = "left"
    return table


def _layers(rows: list[Row]) -> list[Table]:
    """The bytes by layer, a table a network: dense, and SWAT at its highest sparsity."""
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network and row["algorithm"] in ("dense", "swat")]
        last = max((row["sparsity"] or 0 for row in mine), default=0)
        shown = [row for row in mine if row["sparsity"] in (None, last)]
        kept = [{layer["name"]: layer for layer in row["layers"]} for row in shown]
        titles = [
            row["algorithm"] if row["sparsity"] is None else f"S={row['sparsity']:g} {row['norm_input']}"
            for row in shown
        ]
        table = _table(f"{network}: MB of activations kept, by layer", ("layer", "kind"), tuple(titles))
        for name in dict.fromkeys(name for layers in kept for name in layers):
            layers = [layers.get(name) for layers in kept]
            if any(layer and layer["activations"] > 100_000 for layer in layers):
                kind = next(layer["kind"] for layer in layers if layer)
                table.add_row(name, kind, *(_megabytes(layer and layer["activations"]) for layer in layers))
        found.append(table)
    return found


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f}"


def _ms(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return (f"{value:.3g}" if value < 1000 else f"{value:.0f}") + (
        "" if spread is None else f" ±{100 * spread:.0f}%"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}x"
