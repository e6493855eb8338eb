"""Train one network with every algorithm at reduced scale and tabulate accuracy, before and after pruning.

    python benchmarks/accuracy.py fashion-mnist cifar10 --jobs 2

Each run is an ordinary ``torchswat train``; finished ones are not run again and interrupted ones are
continued, so the command can be repeated until the table is complete. The table goes to
``docs/results/accuracy.csv`` and ``accuracy.md``, each row with what was run, where and from which commit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What the reduction changes against the paper's schedule is said in `ABOUT`, which heads the table.
SETS = {
    "fashion-mnist": "--recipe fashion-mnist --model resnet8 --set data.train_limit=30000",
    "cifar10": "--recipe cifar-small --model resnet8 --set data.train_limit=25000",
}
SCHEDULE = "--epochs 3 --set optimizer.milestones=[2]"
ABOUT = (
    "ResNet-8, half of the training images, 3 epochs (learning rate 0.1, then 0.01 for the last), "
    "all test images, first convolution dense, one seed. The paper trains larger networks for 150 epochs."
)
ROWS = [
    ("dense", 0.0),
    ("swat", 0.5),
    ("swat", 0.7),
    ("swat", 0.8),
    ("swat", 0.9),
    ("saw", 0.8),
    ("meprop", 0.5),
    ("meprop", 0.8),
    ("random", 0.8),
]


def arguments_of(data: str, algorithm: str, sparsity: float, seed: int) -> str:
    """Return what follows ``torchswat train`` but for the output folder."""
    return f"{SETS[data]} {SCHEDULE} --seed {seed} --algorithm {algorithm} --sparsity {sparsity}"


def train(folder: Path, arguments: str, threads: int) -> None:
    """Run or continue one training in a process of its own."""
    if (folder / "summary.json").exists():
        return
    start = ["--resume", str(folder)] if (folder / "checkpoints").exists() else ["--output", str(folder)]
    words = start if start[0] == "--resume" else [*shlex.split(arguments), *start]
    # a plan that was not timed: the same kernels, and so the same rounding, however busy the machine is
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHSWAT_PLAN": "sparse"}
    subprocess.run([sys.executable, "-m", "torchswat", "train", *words], env=environment, check=True)


def row_of(folder: Path, data: str, algorithm: str, sparsity: float, seed: int) -> dict[str, object]:
    """Return one line of the table from a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    versions = json.loads((folder / "versions.json").read_text())[-1]
    cost = summary["cost"]
    return {
        "data": data,
        "algorithm": algorithm,
        "sparsity": sparsity,
        "seed": seed,
        "accuracy": summary["last"]["sparse"],
        "accuracy_pruned": summary["last"]["pruned"],
        "macs_saving": round(cost["macs"]["dense"] / cost["macs"]["measured"], 3),
        "weights_saving": round(cost["weights"]["dense"] / cost["weights"]["measured"], 3),
        "activations_saving": round(cost["activations"]["dense"] / cost["activations"]["measured"], 3),
        "commit": versions["git_commit"],
        "torch": versions["torch"],
        "processor": versions["processor"],
        "command": f"torchswat train {arguments_of(data, algorithm, sparsity, seed)}",
    }


def write(rows: list[dict[str, object]], folder: Path) -> None:
    """Write the table as CSV and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "# Accuracy at reduced scale",
        "",
        ABOUT,
        "",
        "Made by `python benchmarks/accuracy.py`. Operations and bytes are counted from the masks of a real "
        "pass, not timed. Seeds, commits, hardware and commands are in [accuracy.csv](accuracy.csv).",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += [
            "",
            f"## {data}",
            "",
            "| algorithm | sparsity | accuracy | pruned | operations | weights read | activations kept |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {r['algorithm']} | {float(str(r['sparsity'])):.0%} "
            f"| {r['accuracy']:.2f} | {r['accuracy_pruned']:.2f} "
            f"| {r['macs_saving']}x less | {r['weights_saving']}x less | {r['activations_saving']}x less |"
            for r in rows
            if r["data"] == data
        ]
    (folder / "accuracy.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="*", default=list(SETS), help=f"of {', '.join(SETS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of the table")
    options = parser.parse_args()
    if unknown := set(options.data) - set(SETS):
        parser.error(f"unknown data {', '.join(sorted(unknown))}; known are {', '.join(SETS)}")
    wanted = [(data, *row, options.seed) for data in options.data for row in ROWS]
    folders = [
        options.runs / f"{data}-{algorithm}-{sparsity}-{seed}" for data, algorithm, sparsity, seed in wanted
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda f, w: train(f, arguments_of(*w), options.threads), folders, wanted))
    write([row_of(folder, *which) for folder, which in zip(folders, wanted, strict=True)], options.output)
    print(f"The table is in {options.output / 'accuracy.md'}.")


if __name__ == "__main__":
    main()
