"""Export trained networks in every format, compare predictions on all test images, and note the sizes.

    python benchmarks/exported.py

Each network is trained for a moment on a part of CIFAR-10, or the finished run is taken; then each file
that ``torchswat export`` writes is read again and its predictions are compared with those of the trained
network, as ``torchswat evaluate`` runs it, on all 10,000 test images. Sizes are noted of the paper's networks
too, untrained: they do not depend on the weights. Or name finished runs of yours:

    python benchmarks/exported.py runs/... --output mine.json
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import torchswat
from torchswat import models
from torchswat.bench.record import Record, Row, circumstances
from torchswat.deploy.export import FORMATS, export_run
from torchswat.training.checkpoint import Checkpoint

TRAIN = "--recipe cifar-small --algorithm swat --sparsity 0.8 --epochs 1 --set data.train_limit=4000"
TRAINED = ("resnet20",)
SIZED = ("resnet18", "vgg16", "wrn28-10", "densenet121", "resnet50")
SPARSITY = 0.8


def trained(network: str, folder: Path) -> Path:
    """Return the run of a network, trained where it was not before."""
    if not (folder / "summary.json").exists():
        words = [*shlex.split(TRAIN), "--model", network, "--output", str(folder)]
        threads = f"threads={torch.get_num_threads()}"
        subprocess.run([sys.executable, "-m", "torchswat", "train", *words, "--set", threads], check=True)
    return folder


def rows_of(run: Path) -> list[Row]:
    """Return a row for each format of a run."""
    with tempfile.TemporaryDirectory() as folder:
        exported = export_run(run, Path(folder), tuple(FORMATS))
    recipe = Checkpoint.load(Path(exported.checkpoint)).recipe
    about = {
        "network": recipe["model"]["name"],
        "data": recipe["data"]["name"],
        "train_images": recipe["data"]["train_limit"],
        "epochs": recipe["optimizer"]["epochs"],
        "algorithm": recipe["sparse"]["algorithm"],
        "sparsity": recipe["sparse"]["sparsity"],
        "seed": recipe["seed"],
        "images": exported.images,
        "accuracy_evaluated": exported.accuracy,
    }
    return [
        {**about, "format": name, **{key: value for key, value in file.items() if key != "path"}}
        for name, file in exported.files.items()
    ]


def size_of(network: str) -> Row:
    """Return the size of a network's file at `SPARSITY`, the first convolution dense."""
    form = "imagenet" if network == "resnet50" else "cifar"
    model = torchswat.sparsify_(models.create(network, form=form), sparsity=SPARSITY, skip=("first",))
    about = models.info(network, form)
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FORMATS["sparse"]
        torchswat.save(model, path, input_shape=(about.in_channels, about.image_size, about.image_size))
        size = path.stat().st_size
    row = {"network": network, "form": form, "sparsity": SPARSITY, "bytes_dense": dense, "bytes": size}
    return {**row, "smaller": dense / size}


def main() -> None:
    """Export, compare, write, and print a line for each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", type=Path, help="finished runs (default: train some)")
    parser.add_argument("--runs", type=Path, default=Path("runs/exported"), help="folder of what is trained")
    parser.add_argument("--output", type=Path, default=Path("docs/results/exported.json"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    situation = circumstances(seed=0, repeats=1)
    runs = options.run or [trained(network, options.runs / network) for network in TRAINED]
    rows = [row for run in runs for row in rows_of(run)]
    remarks = [] if options.run else [f"each trained by: torchswat train {TRAIN}"]
    sizes = [] if options.run else [size_of(network) for network in SIZED]
    Record("exported", situation, rows, sizes, remarks).write(options.output)
    for row in rows:
        size = f"{row['bytes'] / 1e6:.2f} MB, {row['smaller']:.2f}x less than dense"
        differing = f"{row['differing']} of {row['images']} predictions differ"
        gap = f"scores by {row['largest_gap']:.1e} at most"
        print(f"{row['network']} {row['format']}: {size}; {differing}, {gap}")
    for row in sizes:
        size = f"{row['bytes'] / 1e6:.2f} MB, {row['smaller']:.2f}x less than dense"
        print(f"{row['network']} at {SPARSITY}: {size}")
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
