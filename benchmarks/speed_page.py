"""Make ``docs/results/speed.md`` from the JSON files that ``torchswat bench`` wrote beside it.

python benchmarks/speed_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import geometric_mean
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "results"


def record(name: str) -> dict[str, Any] | None:
    """Return a benchmark's record, or None where it was not run."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def threads(facts: dict[str, Any]) -> str:
    """Return how many threads there were, in words."""
    return "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"


def heading(title: str, name: str, found: dict[str, Any]) -> list[str]:
    """Return a section's title and the circumstances of its figures."""
    facts = found["circumstances"]
    return [
        "",
        f"## {title}",
        "",
        f"[{name}.json]({name}.json): {facts['processor']}, {threads(facts)}, "
        f"{facts['engine']['isa']}, torch {facts['torch']}, commit {facts['git_commit']}, "
        f"medians of {facts['repeats']}.",
        "",
    ]


def steps(title: str, name: str, network: str | None = None) -> list[str]:
    """Return the table of whole training steps, of one network where it is named."""
    found = record(name)
    if found is None:
        return []
    lines = heading(title, name, found)
    narrow = any("speed_up_over_bfloat16" in row for row in found["rows"])
    more = " over bfloat16 |" if narrow else ""
    lines += [f"| network | what | S | step ms | speed-up |{more} target |", "| --- " * (6 + narrow) + "|"]
    for row in found["rows"]:
        if network not in (None, row["network"]):
            continue
        sparsity = "" if row["sparsity"] is None else f"{row['sparsity']:.1f}"
        target = row.get("target") or ""
        lines.append(
            f"| {row['network']} | {row['algorithm']}, {row['how']} | {sparsity} "
            f"| {row['step_ms']:.0f} | {row['speed_up']:.2f}x |"
            + (f" {row['speed_up_over_bfloat16']:.2f}x |" if narrow else "")
            + f" {target} |"
        )
    return lines


def roofline(title: str, name: str) -> list[str]:
    """Return the tables of products and steps over their limits, and the drawing beside the file."""
    found = record(name)
    if found is None:
        return []
    facts = found["circumstances"]
    lines = heading(title, name, found)
    lines += [
        f"Limits: multiply-adds on entries that are kept at {facts['peak_gflops']:.0f} GFLOP/s, the peak of registers; "
        f"bytes of operands and result, once, at {facts['memory_gbs']:.0f} GB/s, the rate of a copy in memory. Made by "
        "`torchswat bench roofline`.",
        "",
        f"![Products over their limits]({name}.svg)",
        "",
        "| network | S | operations ms | bytes ms | step ms | step over both | asked |",
        "| --- " * 7 + "|",
    ]
    for row in found["summary"]:
        lines.append(
            f"| {row['network']} | {row['sparsity']:g} | {row['operations_ms']:.0f} | {row['bytes_ms']:.0f} "
            f"| {row['step_ms']:.0f} | {row['over_bound']:.2f}x | {row['target']:g}x |"
        )
    lines += ["", "| network | sizes | product | layers | ms | operations ms | bytes ms | of its limit |"]
    lines += ["| --- " * 8 + "|"]
    for row in found["rows"]:
        lines.append(
            f"| {row['network']} | {row['sizes']} | {row['product']} | {row['layers']} | {row['ms']:.2f} "
            f"| {row['operations_ms']:.2f} | {row['bytes_ms']:.2f} | {100 * row['reached']:.0f} % |"
        )
    return lines


def products(title: str, name: str) -> list[str]:
    """Return the table of single products, a line a shape and product, and their geometric means."""
    found = record(name)
    if found is None:
        return []
    rows = found["rows"]
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = heading(title, name, found)
    lines += ["| shape | product | dense ms | " + " | ".join(f"S = {s}" for s in sparsities) + " |"]
    lines += ["| --- " * (3 + len(sparsities)) + "|"]
    for shape, product in dict.fromkeys((row["shape"], row["product"]) for row in rows):
        line = [row for row in rows if (row["shape"], row["product"]) == (shape, product)]
        speed_ups = {row["sparsity"]: f"{row['speed_up']:.2f}x" for row in line}
        cells = [shape, product, f"{line[0]['dense_ms']:.1f}", *(speed_ups[s] for s in sparsities)]
        lines.append("| " + " | ".join(cells) + " |")
    means = {s: geometric_mean(r["speed_up"] for r in rows if r["sparsity"] == s) for s in sparsities}
    targets = {row["sparsity"]: row["target"] for row in found["summary"]}
    for title_of_row, values in (("geometric mean", means), ("target", targets)):
        cells = [f"{values[s]:.2f}x" if values[s] else "" for s in sparsities]
        lines.append(f"| {title_of_row} | | | " + " | ".join(cells) + " |")
    for title_of_row, key in (
        ("in bfloat16, over dense bfloat16", "bfloat16_speed_up"),
        ("the same, weights in blocks of 2x2", "blocks_speed_up"),
    ):
        if all(key in row for row in found["summary"]):
            cells = [f"{row[key]:.2f}x" for row in found["summary"]]
            lines.append(f"| geometric mean {title_of_row} | | | " + " | ".join(cells) + " |")
    peak = found["circumstances"].get("peak_gflops")
    if peak:
        lines += [
            "",
            f"Peak here: {peak['registers']:.0f} GFLOP/s with operands in registers, "
            f"{peak['first_level_cache']:.0f} with one from the first-level cache.",
        ]
    return lines


def others(title: str, name: str) -> list[str]:
    """Return the table of forward products beside sparseprop's and beside dense bfloat16."""
    found = record(name)
    rows = [row for row in found["rows"] if row.get("sparseprop_ms")] if found else []
    if not rows:
        return []
    lines = ["", f"## {title}", "", "| shape | S | dense | torchswat | sparseprop | dense bfloat16 |"]
    lines += ["| --- " * 6 + "|"]
    for row in rows:
        times = (row[f"{who}_ms"] for who in ("dense", "sparse", "sparseprop", "dense_bfloat16"))
        lines.append(
            f"| {row['shape']} | {row['sparsity']} | " + " | ".join(f"{t:.1f}" for t in times) + " |"
        )
    return lines


def main() -> None:
    """Write the page."""
    lines = ["# Speed", "", "Made by `python benchmarks/speed_page.py` from the files beside it."]
    lines += steps("Whole training steps, AMD Zen 5, in float32 and bfloat16", "step-zen5")
    lines += products("Single products, AMD Zen 5, in float32 and bfloat16", "products-zen5")
    lines += steps("Larger networks, AMD Zen 5", "step-zen5-other")
    lines += roofline("Products and steps over their limits, AMD Zen 5, in float32", "roofline-zen5")
    lines += steps("Whole training steps", "step")
    lines += steps("Whole training steps, ResNet-50 at 224x224, batch 16", "step-resnet50")
    lines += steps("Whole training steps, DenseNet-BC-121, CIFAR size, batch 64", "step-densenet121")
    lines += steps("Whole training steps, WRN-28-10, CIFAR size, batch 128", "step-other", "wrn28-10")
    lines += steps("Whole training steps of a small network, ResNet-20, batch 16", "step-resnet20")
    lines += steps("Whole training steps, both sides held to AVX2", "step-avx2")
    lines += products("Single products, everything included", "products")
    lines += others("Forward products beside others, milliseconds", "products")
    lines += products("Single products, both sides held to AVX2", "products-avx2")
    (FOLDER / "speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
