"""Make ``docs/results/inference.md`` from the JSON files that ``torchswat bench inference`` wrote beside it.

python benchmarks/inference_page.py
"""

from __future__ import annotations

from typing import Any

from speed_page import FOLDER, heading, record

HEAD = """# Inference

Made by `python benchmarks/inference_page.py` from the files beside it, which `torchswat bench inference
--repeats 9` writes: `--case resnet18-64 --case resnet18-1 --case vgg16-64 --case vgg16-1`, and
`--case resnet50-8 --case resnet50-1`.

Networks are files of `torchswat.save`, pruned, with random weights, float32 on all sides; the contestants run
in turns in one process, and a call is a batch of normalised images in memory. Speedup is over the fastest
of the others. They run a pruned network at the price of a dense one, so they are timed once.
"""

NOTES = """
At S = 0.5 this runtime is faster at batch size 64; on ResNet-50 and at batch size 1 it is on par with the
fastest of the others. A processor that multiplies bfloat16 in matrix units, as this one does, could run the
dense networks faster in that precision; float32 is compared with float32 here.
"""


EIGHT_BITS = (
    "Made by `python benchmarks/inference_int8.py`: int8 weights, uint8 activations, random weights, pruned one by one",
    "or in blocks of 1x4 (four input channels of a filter at one tap). The others run the same network, dense, in 8",
    "bits; speed-up is over the faster of them.",
)
NETWORKS = (
    "Made by `python benchmarks/runtime_networks.py`: random weights, pruned; speed-up is over the faster of the",
    "others, which run the same zeros as a dense network. Of the mobile networks the pointwise layers are sparse.",
)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of all contestants of all cases."""
    lines = ["| network | runtime | S | ms a batch | images/s | speed-up | target |", "| --- " * 7 + "|"]
    for row in rows:
        sparsity = "" if row["sparsity"] is None else f"{row['sparsity']:g}"
        target = f"{row['target']:g}x" if row.get("target") else ""
        lines.append(
            f"| {row['network']} x{row['batch_size']} | {row['how']} | {sparsity} | {row['ms']:.3g} "
            f"| {row['images_per_second']:.0f} | {row['speed_up']:.2f}x | {target} |"
        )
    return lines


def eight_bits(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of ResNet-18 in 8 bits beside dense networks in 8 bits."""
    lines = ["| batch | runtime | ms a batch | speed-up | asked |", "| --- " * 5 + "|"]
    for row in rows:
        asked = f"{row['target']:g}x" if row.get("target") else ""
        lines.append(
            f"| {row['batch_size']} | {row['how']} | {row['ms']:.3g} | {row['speed_up']:.2f}x | {asked} |"
        )
    return lines


def networks(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of networks of other kinds, a line each."""
    heads = "| network | S | torchswat ms | ONNX Runtime ms | torch ms | speed-up | asked | a new size, ms |"
    lines = [heads, "| --- " * 8 + "|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        by = {row["how"]: row for row in rows if row["network"] == name}
        ours = by["torchswat"]
        size = ours.get("new_size")
        first = f"{size['ms']:.0f}" if size else ""
        times = (f"{by[how]['ms']:.3g}" if how in by else "" for how in ("torchswat", "onnxruntime", "torch"))
        lines.append(
            f"| {name}, batch {ours['input_shape'][0]} | {ours['sparsity']:g} | {' | '.join(times)} "
            f"| {ours['speed_up']:.2f}x | {ours['target']:g}x | {first} |"
        )
    return lines


def main() -> None:
    """Write the page."""
    lines = [HEAD]
    titles = {"inference-cifar": "CIFAR size", "inference-resnet50": "ResNet-50 at 224x224"}
    for name, title in titles.items():
        found = record(name)
        if found is not None:
            lines += [*heading(title, name, found), *table(found["rows"])]
    lines.append(NOTES)
    for name, title, rows_of, words in (
        ("inference-int8", "ResNet-18 for CIFAR in 8 bits, at a sparsity of 0.9", eight_bits, EIGHT_BITS),
        ("runtime-networks", "Networks of other kinds, in float32", networks, NETWORKS),
    ):
        found = record(name)
        if found is not None:
            lines += [*heading(title, name, found), *words, "", *rows_of(found["rows"])]
    (FOLDER / "inference.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
