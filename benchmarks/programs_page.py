"""Make ``docs/results/programs.md`` from the JSON files that ``torchswat bench programs`` wrote beside it.

python benchmarks/programs_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "results"
Row = dict[str, Any]

INTRODUCTION = """# Training steps of programs of others

Made by `python benchmarks/programs_page.py` from files that `torchswat bench programs` wrote. SWAT at a sparsity of
0.8, exact, period 1, nothing else, over dense torch in the faster of its two layouts with the same allocator, two
threads. "Unfused" is what `sparsify_` makes of a model, "fused" what `fuse_` makes of it besides, where it finds
something. "Over the old version" is the same program on commit 7603080, timed in turns in the same run. The files
name commit, settings and every sample.

Convolutional networks are faster than dense from a step of some ten milliseconds on. Fully connected networks and
transformers with few features, networks with very small maps, and MobileNetV2 are slower than dense in its faster
layout: what a layer costs beside its products (the table of single layers) is more there than what its products win.
"""


def record(name: str) -> Row:
    """Return a benchmark's record."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def line_of(name: str) -> str:
    """Return the circumstances of a file in a sentence."""
    facts = record(name)["circumstances"]
    commit = str(facts["git_commit"]).removesuffix("-dirty")
    return (
        f"[{name}.json]({name}.json): {facts['processor']}, {facts['threads']} threads, {facts['engine']['isa']}, "
        f"torch {facts['torch']}, commit {commit}, medians of {facts['repeats']}."
    )


def by_program(name: str) -> dict[str, dict[str, Row]]:
    """Return the rows of a file by program and contestant, in its order."""
    programs: dict[str, dict[str, Row]] = {}
    for row in record(name)["rows"]:
        programs.setdefault(row["program"], {})[row["contestant"]] = row
    return programs


def dense_ms(rows: dict[str, Row]) -> float:
    """Return the milliseconds of the faster dense layout."""
    return min(row["step_ms"] for how, row in rows.items() if how.startswith("dense "))


def factor(number: float | None) -> str:
    """Return a ratio, or nothing where there is none."""
    return "" if number is None else f"{number:.2f}x"


def asked(rows: dict[str, Row], key: str = "asked") -> str:
    """Return the target of a program."""
    found = [row[key] for row in rows.values() if row.get(key) is not None]
    return f"{found[0]:.2f}x" if found else ""


def ms(number: float) -> str:
    """Return milliseconds with three digits."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def table(name: str) -> list[str]:
    """Return the table of the programs of a file; single layers have one of their own."""
    programs = {
        program: rows
        for program, rows in by_program(name).items()
        if not program.startswith(("layer-overhead", "step-overhead"))
    }
    old = any(row.get("over_against") is not None for rows in programs.values() for row in rows.values())
    heads = ["program", "dense ms", "unfused", "fused", "asked", *(["over the old version"] * old)]
    lines = [line_of(name), "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for program, rows in programs.items():
        best = rows.get("fused", rows["sparse"])
        cells = [program, ms(dense_ms(rows)), factor(rows["sparse"]["speed_up"])]
        cells += [factor(rows["fused"]["speed_up"]) if "fused" in rows else "", asked(rows)]
        cells += [factor(best["over_against"])] * old
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def bfloat16(name: str) -> list[str]:
    """Return the table of programs in float32 and, under autocast, in bfloat16."""
    programs = by_program(name)
    lines = [
        line_of(name),
        "",
        "| program | float32, over dense | bfloat16, over dense bfloat16 | bfloat16, over SWAT in float32 |",
        "| --- " * 4 + "|",
    ]
    for program, rows in programs.items():
        if program.endswith("-bfloat16"):
            plain = program.removesuffix("-bfloat16")
            how = "fused" if "fused" in rows else "sparse"
            base = programs[plain][how]["speed_up"] if plain in programs else None
            cells = [plain, factor(base), factor(rows[how]["speed_up"]), factor(rows[how]["over_float32"])]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def single_layers(name: str) -> list[str]:
    """Return the table of what one layer costs on a tiny input, and the share of a step outside of kernels."""
    heads = "| layer | torch's function | torch's module | sparse | a `Function` that does nothing | old version |"
    layers = []
    for program, rows in by_program(name).items():
        if program.startswith("layer-overhead"):
            function, module = (rows[how]["step_ms"] for how in rows if how.startswith("dense "))
            others = (
                rows[how]["step_ms"] for how in ("sparse", "no-op Function", "against sparse") if how in rows
            )
            times = (f"{1000 * time:.0f}" for time in (function, module, *others))
            layers.append(f"| {program} | {' | '.join(times)} |")
    title = "Microseconds, forward and backward, of one layer on an input of a few numbers:"
    lines = [title, "", heads, "| --- " * 6 + "|", *layers] if layers else []
    shares = by_program(name).get("step-overhead-resnet20-x16", {})
    told = {how: row["outside_kernels"] for how, row in shares.items() if row.get("outside_kernels")}
    if told:
        words = ", ".join(f"{how} {100 * share:.0f} %" for how, share in told.items())
        lines += [
            "",
            "Of a step of ResNet-20 at batch 16, outside of kernels (the time of the same step on tiny images over "
            f"that of the full one): {words}.",
        ]
    return lines


def compiled(names: tuple[str, ...]) -> list[str]:
    """Return the table of networks under torch.compile."""
    heads = "| program | dense, Inductor ms | SWAT compiled ms | over compiled dense | over SWAT fused in eager mode |"
    lines = [*(f"- {line_of(name)}" for name in names), "", heads, "| --- " * 5 + "|"]
    for name in names:
        for program, rows in by_program(name).items():
            dense = min(row["step_ms"] for how, row in rows.items() if how.startswith("compiled dense"))
            best, eager = rows["compiled sparse"], rows.get("fused", rows["sparse"])
            ratios = dense / best["step_ms"], eager["step_ms"] / best["step_ms"]
            cells = [program, ms(dense), ms(best["step_ms"]), *map(factor, ratios)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Write the page."""
    small = "programs-zen5-small"
    lines = [INTRODUCTION, "## Hugging Face's default configurations", "", *bfloat16("programs-zen5-hf")]
    lines += [
        "",
        "Fully connected layers in bfloat16 run dense products on selected operands: what they select and mask costs "
        "12 % of the ViT's step, and turning tokens for a sparse product costs more than it wins.",
        "",
        "## Small programs",
        "",
        *table(small),
        "",
        "## A single layer",
        "",
        *single_layers(small),
        "",
        "## Sixty new batch sizes, sixty new image sizes",
        "",
        "All of them, one after the other, in a process that has measured nothing before.",
        "",
        *table("programs-zen5-new" if (FOLDER / "programs-zen5-new.json").exists() else "programs-new"),
        "",
        "## Beside the old version",
        "",
        "ResNet-18 (ours, and as a user would write it), VGG-16, and Hugging Face's networks before bfloat16 had "
        "products of its own.",
        "",
    ]
    for name in ("programs-resnet18", "programs-vgg16", "programs-hf"):
        lines += [*table(name), ""]
    lines += [
        "## A processor without AVX-512",
        "",
        "Python and torch's calls were several times slower on this machine, which others shared, so overhead weighs "
        "more. The small programs were timed before a small ReLU became torch's own, the MLPs again after it.",
        "",
    ]
    for name in ("densenet121", "wrn", "resnet50", "small", "mlp"):
        lines += [*table(f"programs-avx2-{name}"), ""]
    lines += [
        *single_layers("programs-avx2-overhead"),
        "",
        '## `torch.compile(model, backend="torchswat")`',
        "",
        *compiled(("programs-avx2-compiled-resnet18", "programs-avx2-compiled-resnet20")),
    ]
    (FOLDER / "programs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
