"""Make ``docs/results/memory.md`` from the JSON file that ``torchswat bench memory`` wrote beside it.

python benchmarks/memory_page.py
"""

from __future__ import annotations

from typing import Any

from speed_page import FOLDER, record, threads

HEAD = """# Memory

Made by `python benchmarks/memory_page.py` from [memory.json](memory.json), which `torchswat bench memory
--threads 1 -o docs/results/memory.json` writes.

Bytes are those of the storages that one training step saves for backward, each storage once:
values, positions, masks, statistics, and whatever is allocated and not used. Parameters and the batch are
there anyway and are not counted among the activations. *Fewer* is against dense torch. *Weights* are what the
backward pass reads of convolutions and linear layers; in a sparse network they stand beside the dense
parameters, which the optimizer needs. *Peak* is the most memory of the process in the step above what it
holds between steps (gradients and temporary tensors included), every larger tensor mapped by itself;
*by the bytes* is the dense peak minus the saved bytes that a sparse step does without, and *of it* the fraction of
that reduction that was measured.

![Saved bytes and peak](memory.png)
"""

NOTES = """
What the figures say:

- The input of batch norm is most of what is left: it is saved whole by default, as in the paper. Where nothing
  is added between it and its ReLU, the next layer saves nothing of its own: it recomputes its compressed input
  from batch norm's. Only layers behind a sum, a pool or the images save one, so bytes fall by more than the
  targets, and by less from one S to the next.
- With a narrower input of batch norm every layer saves its compressed input, which is exact then as well.
- VGG-16 saves more bytes than ResNet-18 since torch's max pooling saves its whole input and an 8-byte index an
  output.
- The narrower the batch norm's input, the more of the peak are gradients: at the largest maps two or three
  dense ones are alive beside the saved activations, and nothing here makes them smaller.
- What the smaller memory costs in time: `python benchmarks/memory_step.py 7`,
  [memory-step.json](memory-step.json), a step against the same one that saves packed weights and compressed
  activations in the forward pass.
- Accuracy with the narrower inputs: [norm-input.csv](norm-input.csv), ResNet-20 on 20,000 images of
  CIFAR-10, four epochs of SWAT at 80 %, one seed each (`torchswat train --recipe cifar-small --epochs 4
  --method sample --set data.train_limit=20000 --set optimizer.milestones=[3] --set sparse.norm_input=int8`).
  One seed at this scale cannot tell such differences from those of seeds.
- Algorithms that leave activations dense save what torch saves, or their masks beside it (dsg).
  forward-weight runs in the engine's layout: it saves less behind pooling and a little more elsewhere.
"""


def step_lines() -> list[str]:
    """Return the table of what little memory costs in time, where that was measured."""
    found = record("memory-step")
    if found is None:
        return []
    facts = found["circumstances"]
    lines = [
        "",
        f"## What it costs in time: {threads(facts)}, commit {facts['git_commit']}, "
        f"medians of {facts['repeats']}",
        "",
        "| network | S | step ms | ms with all kept at hand | slower by |",
        "| --- " * 5 + "|",
    ]
    return lines + [
        f"| {row['network']} | {row['sparsity']} | {row['kept_small_ms']:.0f} | {row['kept_at_hand_ms']:.0f} "
        f"| {100 * row['slower']:+.1f} % |"
        for row in found["rows"]
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of all settings of one network."""
    lines = [
        "| algorithm | S | batch norm's input | activations MB | fewer | target | weights MB | fewer "
        "| target | peak MB | by the bytes | of it |",
        "| --- " * 12 + "|",
    ]
    for row in rows:
        cells = [
            row["algorithm"],
            "" if row["sparsity"] is None else f"{row['sparsity']:.1f}",
            row["norm_input"],
            f"{row['activations'] / 1e6:.1f}",
            f"{row['fewer_activations']:.2f}x",
            f"{row['activation_target']}x" if row["activation_target"] else "",
            f"{row['weights_read'] / 1e6:.1f}",
            f"{row['fewer_weights']:.2f}x",
            f"{row['weight_target']}x" if row["weight_target"] else "",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['peak_by_bytes'] / 1e6:.0f}",
            _fall(row, rows[0]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _fall(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """Return the share of the expected reduction of the peak that was measured, where any was expected."""
    expected = dense["peak"] - row["peak_by_bytes"]
    return f"{100 * (dense['peak'] - row['peak']) / expected:.0f} %" if expected > 0 else ""


def main() -> None:
    """Write the page."""
    found = record("memory")
    if found is None:
        raise SystemExit("docs/results/memory.json is not there; run torchswat bench memory first.")
    facts = found["circumstances"]
    lines = [HEAD]
    lines.append(
        f"{facts['processor']}, {threads(facts)}, {facts['engine']['isa']}, "
        f"torch {facts['torch']}, commit {facts['git_commit']}."
    )
    for network in dict.fromkeys(row["network"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["network"] == network]
        lines += ["", f"## {network}, batch {rows[0]['batch_size']}", "", *table(rows)]
    lines += step_lines()
    (FOLDER / "memory.md").write_text("\n".join(lines) + "\n" + NOTES)


if __name__ == "__main__":
    main()
