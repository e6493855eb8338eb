"""The page: everything found, put together into one HTML file that needs no other."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from torchswat.report.discover import Found, Result, Row, Run
from torchswat.report.drawings import (
    inline,
    layers_over_time,
    learning_curves,
    memory_bars,
    speed_over_sparsity,
    themed,
)

VERDICTS = ("reproduced", "reproduced at reduced scale", "not reproduced", "not run")
_SHOWN_ROWS = 60  # of a table that can be opened; the file beside the figure has them all
_SAVED = ("macs", "weights", "activations")
_SHOWN_LAYERS = 4  # runs of a place whose layers are drawn


def make_page(found: Found, title: str) -> str:
    """Return the HTML of everything found.

    Parameters
    ----------
    found : Found
        By `torchswat.report.discover.discover`.
    title : str
        Of the page.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["slug"] = lambda text: text.replace(" ", "-")
    environment.filters |= {"tied": _tied, "parts": lambda text: re.sub(r"(\),|;) ", r"\1\n", text)}
    folder = resources.files("torchswat.report")
    template = environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8"))
    claims = _claims(found)
    return template.render(
        title=title,
        style=Markup(folder.joinpath("style.css").read_text(encoding="utf-8")),  # our own file
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        claims=claims,
        verdicts=[(verdict, count) for verdict, count in _counted(claims) if count],
        figures=_figures(found),
        places=_places(list(found.runs.values())),
        benchmarks=_benchmarks(found),
        known_runs=set(found.runs),
    )


def _tied(text: str) -> str:
    """`text` with units that stay with their numbers, and with real minus signs."""
    text = re.sub(
        r"(?<=\d) (?=%|points|degrees|seeds)|(?<=limit) (?=\d)|(?<=p) (?==)|(?<==) (?=\d)", "\u00a0", text
    )
    return re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text)


# ---- claims and figures ------------------------------------------------------------------------------------


def _claims(found: Found) -> list[Row]:
    """Every claim with its verdict; what no result speaks of was not run."""
    judged = {claim["name"]: claim for result in found.results.values() for claim in result.facts["claims"]}
    known = found.claims if found.results else {}
    return [
        {
            "observed": "",
            "verdict": "not run",
            **claim,
            **judged.get(name, {}),
            "shown": claim["figure"] in found.results,
        }
        for name, claim in {**known, **judged}.items()
    ]


def _counted(claims: list[Row]) -> list[tuple[str, int]]:
    counts = Counter(claim["verdict"] for claim in claims)
    return [(verdict, counts[verdict]) for verdict in VERDICTS]


def _figures(found: Found) -> list[Row]:
    """The figures in the order of the paper; what is there beside a figure follows it."""
    order = {claim["figure"]: place for place, claim in enumerate(found.claims.values())}

    def place(figure: str) -> tuple[float, str]:
        near = [at for known, at in order.items() if figure == known or figure.startswith(f"{known}-")]
        return max(near, default=len(order) + len(found.claims)), figure

    return [_figure(found.results[figure]) for figure in sorted(found.results, key=place)]


def _worst(claims: list[Row]) -> str:
    """Of several verdicts on a figure the one to know first: what was not reproduced."""
    verdicts = {claim["verdict"] for claim in claims}
    by_weight = ("not reproduced", "reproduced at reduced scale", "reproduced", "not run")
    return next((verdict for verdict in by_weight if verdict in verdicts), "")


def _figure(result: Result) -> Row:
    facts = result.facts
    versions = facts["circumstances"]
    return {
        **facts,
        "panels": _marked(
            themed(panel, f"Figure {facts['figure']}: {facts['title']}") for panel in result.panels
        ),
        "summary": _table_of_text(facts.get("table", [])),
        "verdict": _worst(facts["claims"]),
        "folder": result.path.name,
        "table": _table(result.rows),
        "hidden_rows": max(0, len(result.rows) - _SHOWN_ROWS),
        "made": _made(versions),
    }


def _made(versions: Row) -> str:
    commit = str(versions.get("git_commit") or "unknown")
    changed = " (changed since)" if commit.endswith("-dirty") else ""
    gpu = versions.get("gpu")
    isa = (versions.get("engine") or {}).get("isa")
    parts = [
        f"commit {commit.removesuffix('-dirty')}{changed}",
        f"torch {versions.get('torch')}",
        f"{versions.get('processor')}, threads: {versions.get('threads')}",
        *([gpu] if gpu else []),
        *([isa] if isa else []),
        *([f"{versions['started'][:10]}"] if versions.get("started") else []),
    ]
    return ", ".join(parts)


def _marked(panels: Iterable[str]) -> list[Markup]:
    """Drawings that `themed` has cleaned, as HTML."""
    return [Markup(panel) for panel in panels]


def _table_of_text(rows: list[Row]) -> Row:
    columns = list(rows[0]) if rows else []
    return _grid(columns, [[str(row[c]) for c in columns] for row in rows])


def _table(rows: list[dict[str, str]]) -> Row:
    columns = list(rows[0]) if rows else []
    return _grid(columns, [[row[c] for c in columns] for row in rows[:_SHOWN_ROWS]])


def _grid(columns: list[str], rows: list[list[str]]) -> Row:
    """A table for the page, which sets columns of numbers to the right."""
    numeric = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    return {"columns": columns, "rows": rows, "numeric": numeric}


def _is_number(text: str) -> bool:
    try:
        float(text.partition(" ± ")[0].strip("–") or 0)
    except ValueError:
        return False
    return True


# ---- runs --------------------------------------------------------------------------------------------------


def _places(runs: list[Run]) -> list[Row]:
    """Runs grouped by network and data, with their curves and what was seen of their layers."""
    places = []
    for place in sorted({run.place for run in runs}):
        mine = sorted(
            (r for r in runs if r.place == place),
            key=lambda r: (r.algorithm != "dense", r.algorithm, r.sparsity, r.recipe["seed"]),
        )
        trained = [run for run in mine if run.epochs]
        label = f"Learning curves of {place}, sparse against dense"
        curves = _marked(inline(learning_curves(trained), f"curves {place}", label)) if trained else []
        seen = [run for run in mine if run.sights]
        once = list({(run.algorithm, run.sparsity): run for run in reversed(seen)}.values())[::-1]
        # what the paper proposes comes first, where there is more than can be shown
        once.sort(key=lambda run: run.algorithm != "swat")
        places.append(
            {
                "name": place,
                "curves": curves,
                "kinds": _kinds(mine),
                "runs": [_run(run) for run in mine],
                "made": sorted({_made(run.versions[-1]) for run in mine if run.versions}),
                "layers": [
                    {
                        "title": f"{run.algorithm} {run.sparsity}, seed {run.recipe['seed']}",
                        "run": run.name,
                        "panels": _marked(
                            inline(
                                layers_over_time(run),
                                f"layers {run.name}",
                                f"Threshold, angle and density of each layer over the steps, {run.name}",
                            )
                        ),
                        "densities": _densities(run),
                    }
                    for run in once[:_SHOWN_LAYERS]
                ],
                "hidden_layers": max(0, len(once) - _SHOWN_LAYERS),
            }
        )
    return places


def _kinds(runs: list[Run]) -> list[Row]:
    """What the finished runs of a place found, seeds taken together, and how far it is from dense."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        if run.summary:
            kinds.setdefault((run.algorithm, run.sparsity), []).append(
                {**_run(run), "is": run.summary["last"]}
            )
    base = [row["is"]["sparse"] for row in kinds.get(("dense", ""), [])]
    rows = []
    for (algorithm, sparsity), mine in kinds.items():
        reached = [row["is"]["sparse"] for row in mine]
        spread = f" ± {stdev(reached):.2f}" if len(reached) > 1 else ""
        sparse = algorithm != "dense"
        rows.append(
            {
                **{name: mine[0].get(name, "") if sparse else "" for name in _SAVED},
                "algorithm": algorithm,
                "sparsity": sparsity,
                "runs": len(mine),
                "accuracy": f"{fmean(reached):.2f}{spread}",
                "against": f"{fmean(reached) - fmean(base):+.2f}" if base and sparse else "",
                "pruned": f"{fmean(row['is']['pruned'] for row in mine):.2f}" if sparse else "",
            }
        )
    return rows


def _run(run: Run) -> Row:
    last = run.summary["last"] if run.summary else {}
    totals = run.summary["cost"] if run.summary else {}
    state = "" if run.summary else f"broke off: {run.problem}" if run.problem else "not finished"
    savings = {name: _saving(totals[name]) for name in _SAVED if name in totals}
    return {
        "name": run.name,
        "algorithm": run.algorithm,
        "sparsity": run.sparsity,
        "seed": run.recipe["seed"],
        "epochs": len(run.epochs),
        "accuracy": _number(last.get("sparse", run.accuracy)),
        "pruned": _number(last.get("pruned")),
        "seconds": f"{run.summary['seconds']:.0f}" if run.summary else "",
        "state": state,
        "made": _made(run.versions[-1]) if run.versions else "",
        **savings,
    }


def _saving(count: dict[str, float]) -> str:
    return f"{count['dense'] / count['measured']:.2f}x" if count["measured"] else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _densities(run: Run) -> Row:
    """The last look at each layer, as a table: what it asked for and what it really kept."""
    last = max(int(sight["step"]) for sight in run.sights)
    rows = [
        [
            sight["layer"],
            sight["operand"],
            _short(sight["threshold"]),
            _short(sight["angle"]),
            _short(sight["density"]),
        ]
        for sight in run.sights
        if int(sight["step"]) == last
    ]
    return {"step": last, **_grid(["layer", "operand", "threshold", "angle", "density"], rows)}


def _short(text: str) -> str:
    return f"{float(text):.4g}" if text else ""


# ---- speed and memory --------------------------------------------------------------------------------------

_KINDS = {
    "step": (
        "Training steps",
        "Against dense torch in its faster layout. METHOD:PERIOD says how thresholds are found and after how "
        "many steps again; the dotted line is 1 / (1 - S), which no sparse product can pass.",
    ),
    "memory": ("Memory of a training step", "Bytes of every storage that is saved for backward."),
    "inference": ("Inference", "Of a pruned network, against the fastest of the other runtimes."),
    "products": (
        "The three products of a layer",
        "Packing and compressing included, against dense torch in its faster layout.",
    ),
    "selection": ("Finding the k-th largest", "Of the magnitudes of a tensor."),
}
_DRAWN = {"step": ("network", "how"), "products": ("product", "shape"), "inference": ("place", "how")}


def _benchmarks(found: Found) -> list[Row]:
    """The records, one kind after the other."""
    kinds = dict.fromkeys([*_KINDS, *(record["benchmark"] for _, record in found.benchmarks)])
    groups = []
    for kind in kinds:
        records = [
            _benchmark(path, record) for path, record in found.benchmarks if record["benchmark"] == kind
        ]
        title, note = _KINDS.get(kind, (kind, ""))
        records.sort(key=lambda record: not record["is_wide"])
        groups += [{"title": title, "note": note, "records": records}] if records else []
    return groups


def _benchmark(path: Path, record: Row) -> Row:
    """One record: a drawing, and its rows without the raw samples."""
    rows = [
        {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        for row in record["rows"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    facts, name = record.get("circumstances", {}), record["benchmark"]
    figure = None
    if name in _DRAWN:
        placed = [{**row, "place": f"{row.get('network')}, batch {row.get('batch_size')}"} for row in rows]
        figure = speed_over_sparsity(placed, *_DRAWN[name])
    elif name == "memory":
        figure = memory_bars(rows)
    return {
        "file": path.name,
        "is_wide": figure is not None and len(figure.axes) > 1,
        "made": f"{_made(facts)}, {facts.get('repeats')} repeats",
        "panels": _marked(inline(figure, f"bench {path.name}", f"{name}: {path.name}")) if figure else [],
        "table": _grid(columns, [[_cell(row.get(c)) for c in columns] for row in rows]),
        "remarks": record.get("remarks", []),
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
