"""The page: everything found, put together into one HTML file that needs no other."""

from __future__ import annotations

import time
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from torchswat.report.discover import Found, Result, Row, Run
from torchswat.report.drawings import inline, layers_over_time, learning_curves, speed_over_sparsity, themed

VERDICTS = ("reproduced", "reproduced at reduced scale", "not reproduced", "not run")
_SHOWN_ROWS = 60  # of a table that can be opened; the file beside the figure has them all
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
    folder = resources.files("torchswat.report")
    template = environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8"))
    claims = _claims(found)
    return template.render(
        title=title,
        style=Markup(folder.joinpath("style.css").read_text(encoding="utf-8")),  # our own file
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        claims=claims,
        verdicts=[(verdict, count) for verdict, count in _counted(claims) if count],
        figures=[_figure(result) for result in found.results.values()],
        places=_places(list(found.runs.values())),
        benchmarks=[_benchmark(path, record) for path, record in found.benchmarks],
        known_runs=set(found.runs),
    )


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


def _figure(result: Result) -> Row:
    facts = result.facts
    versions = facts["circumstances"]
    return {
        **facts,
        "svg": Markup(themed(result.svg)),
        "table": _table(result.rows),
        "hidden_rows": max(0, len(result.rows) - _SHOWN_ROWS),
        "made": _made(versions),
    }


def _made(versions: Row) -> str:
    commit = str(versions.get("git_commit") or "unknown")
    changed = " (changed since)" if commit.endswith("-dirty") else ""
    gpu = versions.get("gpu")
    parts = [
        f"commit {commit.removesuffix('-dirty')}{changed}",
        f"torch {versions.get('torch')}",
        f"{versions.get('processor')}, threads: {versions.get('threads')}",
    ]
    return ", ".join([*parts, *([gpu] if gpu else [])])


def _table(rows: list[dict[str, str]]) -> Row:
    columns = list(rows[0]) if rows else []
    return {"columns": columns, "rows": [[row[c] for c in columns] for row in rows[:_SHOWN_ROWS]]}


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
        curves = inline(learning_curves(trained), f"curves {place}") if trained else ""
        seen = [run for run in mine if run.sights]
        once = list({(run.algorithm, run.sparsity): run for run in reversed(seen)}.values())[::-1]
        # what the paper proposes comes first, where there is more than can be shown
        once.sort(key=lambda run: run.algorithm != "swat")
        places.append(
            {
                "name": place,
                "curves": Markup(curves),
                "runs": [_run(run) for run in mine],
                "layers": [
                    {
                        "title": f"{run.algorithm} {run.sparsity}, seed {run.recipe['seed']}",
                        "run": run.name,
                        "svg": Markup(inline(layers_over_time(run), f"layers {run.name}")),
                        "densities": _densities(run),
                    }
                    for run in once[:_SHOWN_LAYERS]
                ],
                "hidden_layers": max(0, len(once) - _SHOWN_LAYERS),
            }
        )
    return places


def _run(run: Run) -> Row:
    last = run.summary["last"] if run.summary else {}
    totals = run.summary["cost"] if run.summary else {}
    state = "" if run.summary else f"broke off: {run.problem}" if run.problem else "not finished"
    savings = {name: _saving(totals[name]) for name in ("macs", "weights", "activations") if name in totals}
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
    return {"step": last, "columns": ["layer", "operand", "threshold", "angle", "density"], "rows": rows}


def _short(text: str) -> str:
    return f"{float(text):.4g}" if text else ""


# ---- speed and memory --------------------------------------------------------------------------------------

_DRAWN = {"step": ("network", "how"), "products": ("product", "shape")}


def _benchmark(path: Path, record: Row) -> Row:
    """One record: a drawing where it goes over sparsity, and its rows without the raw samples."""
    rows = [
        {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        for row in record["rows"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    figure = None
    if record["benchmark"] in _DRAWN:
        across, line = _DRAWN[record["benchmark"]]
        figure = speed_over_sparsity(record["rows"], across, line)
    facts = record.get("circumstances", {})
    return {
        "name": record["benchmark"],
        "file": path.name,
        "made": f"{_made(facts)}, {facts.get('repeats')} repeats",
        "svg": Markup(inline(figure, f"bench {path.name}")) if figure else "",
        "table": {"columns": columns, "rows": [[_cell(row.get(c)) for c in columns] for row in rows]},
        "remarks": record.get("remarks", []),
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
