"""Make ``docs/results/memory.md`` from the JSON file that ``torchswat bench memory`` wrote beside it.

python benchmarks/memory_page.py
"""

from __future__ import annotations

from typing import Any

from speed_page import FOLDER, record

HEAD = """# Memory

Made by `python benchmarks/memory_page.py` from [memory.json](memory.json), which `torchswat bench memory -o
docs/results/memory.json` writes.

Bytes are those of the storages that one training step saves for its backward pass, each storage once:
values, positions, masks, statistics, and whatever is allocated and not used. Parameters and the batch are
there anyway and are not counted among the activations. *Fewer* is against dense torch. *Weights* are what the
backward pass reads of convolutions and linear layers; in a sparse network they stand beside the dense
parameters, which the optimizer needs. *Peak* is the most memory of the process in the step above what it
holds between steps (gradients and temporary tensors included), every larger tensor mapped by itself;
*by the bytes* is the dense peak less what is kept less, and *of it* how much of that fall was seen.

![bytes kept and peak](memory.png)
"""

NOTES = """
What the figures say:

- The input of batch norm is most of what is left: it is kept whole by default, as in the paper. VGG-16 gains
  more than the targets since torch's maximum keeps its whole input and an 8-byte index an output.
- ResNet-18 with the input whole stays 3 % short of its targets. They count two tensors a convolution; a
  projection shortcut has a batch norm of its own but no ReLU, and its convolution keeps a second
  compressed copy of what the block's first convolution keeps.
- The narrower the batch norm's input, the more of the peak are gradients of the backward pass itself, which
  nothing here makes smaller; so the peak falls by less than what is kept.
- Accuracy with the narrower inputs: [norm-input.csv](norm-input.csv), ResNet-20 on 20,000 images of
  CIFAR-10, four epochs of SWAT at 80 %, one seed each (`torchswat train --recipe cifar-small --epochs 4
  --method sample --set data.train_limit=20000 --set optimizer.milestones=[3] --set sparse.norm_input=int8`).
  One seed at this scale cannot tell such differences from those of seeds.
- Algorithms that leave activations dense keep what torch keeps, or their masks beside it (dsg).
"""


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
    """Return the share of the promised fall of the peak that was seen, where any was promised."""
    promised = dense["peak"] - row["peak_by_bytes"]
    return f"{100 * (dense['peak'] - row['peak']) / promised:.0f} %" if promised > 0 else ""


def main() -> None:
    """Write the page."""
    found = record("memory")
    if found is None:
        raise SystemExit("docs/results/memory.json is not there; run torchswat bench memory first.")
    facts = found["circumstances"]
    lines = [HEAD]
    lines.append(
        f"{facts['processor']}, {facts['threads']} threads, {facts['engine']['isa']}, "
        f"torch {facts['torch']}, commit {facts['git_commit']}."
    )
    for network in dict.fromkeys(row["network"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["network"] == network]
        lines += ["", f"## {network}, batch {rows[0]['batch_size']}", "", *table(rows)]
    (FOLDER / "memory.md").write_text("\n".join(lines) + "\n" + NOTES)


if __name__ == "__main__":
    main()
