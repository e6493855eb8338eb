"""The folder of a run: all that is needed to repeat it, to continue it and to judge it.

==================  ==========================================================================================
``recipe.yaml``     every value of the recipe as it was run; ``torchswat train --recipe`` takes it
``versions.json``   software, git commit and hardware, one entry each time the run was started or resumed
``metrics.csv``     one row an epoch
``metrics.jsonl``   the same, one JSON object a line
``analysis.csv``    thresholds, angles and densities of the sparse layers, where the recipe asks for them
``tensorboard/``    the same as events, and the training loss of single steps
``checkpoints/``    see docs/checkpoints.md
``curves.svg/png``  the learning curves
``summary.json``    the final table; there once the run has finished
==================  ==========================================================================================
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, astuple, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from torchswat.errors import CheckpointError, InvalidData, InvalidValue, MissingData
from torchswat.files import write_atomically
from torchswat.training.checkpoint import list_checkpoints
from torchswat.training.processes import agree
from torchswat.training.recipe import Recipe, load_recipe
from torchswat.training.watch import Sight


@dataclass(frozen=True)
class EpochMetrics:
    """One row of the metrics: an epoch's means. Accuracies are in per cent, losses in nats an image."""

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float  # of training, evaluation not included; since the resume where the epoch was interrupted
    images_per_second: float


class RunFolder:
    """The files of one run.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder.create(Path(tempfile.mkdtemp()) / "first", load_recipe("digits-demo"))
    >>> folder.append(EpochMetrics(1, 11, 0.1, 2.3, 10.0, 2.2, 12.5, 1.0, 1400.0))
    >>> [row.test_accuracy for row in folder.metrics()]
    [12.5]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Begin a new run in `path`, which may exist but may not hold a run."""
        if (path / "recipe.yaml").exists():
            raise InvalidValue(
                f"{path} already holds a run. Continue it with `torchswat train --resume {path}`, "
                "or choose another folder with --output."
            )
        folder = cls(path)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "recipe.yaml", recipe.to_yaml().encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that was begun before."""
        if not (path / "recipe.yaml").is_file():
            raise MissingData(f"{path} is not the folder of a run: it holds no recipe.yaml")
        return cls(path)

    def recipe(self) -> Recipe:
        """The recipe that was run."""
        return load_recipe(self.path / "recipe.yaml")

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint, or None where the run had not come so far."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def record_versions(self, processes: int) -> None:
        """Note what the run is started with; a resumed run adds a second entry."""
        path = self.path / "versions.json"
        entries = json.loads(path.read_text()) if path.exists() else []
        entries.append(
            {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **versions(), "processes": processes}
        )
        write_atomically(path, (json.dumps(entries, indent=2) + "\n").encode())

    def append(self, row: EpochMetrics) -> None:
        """Add an epoch to both files of metrics, durably: a checkpoint that counts on it is written next."""
        self._append("metrics.jsonl", json.dumps(asdict(row)) + "\n")
        header = (
            "" if (self.path / "metrics.csv").exists() else _csv_line(field.name for field in fields(row))
        )
        self._append("metrics.csv", header + _csv_line(asdict(row).values()))

    def truncate_metrics(self, epochs: int) -> None:
        """Forget the epochs after the first `epochs`: a resumed run is going to repeat them."""
        kept = self.metrics()[:epochs]
        if len(kept) < epochs:
            raise InvalidData(
                f"{self.path / 'metrics.jsonl'} holds {len(kept)} epochs but the checkpoint has {epochs}; "
                "the file was changed or damaged since"
            )
        header = _csv_line(field.name for field in fields(EpochMetrics))
        table = header + "".join(_csv_line(asdict(row).values()) for row in kept)
        write_atomically(self.path / "metrics.csv", table.encode())
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in kept)
        write_atomically(self.path / "metrics.jsonl", lines.encode())

    def metrics(self) -> list[EpochMetrics]:
        """The epochs recorded so far. A last line that a killed run left half-written is not counted."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        *lines, _unfinished = path.read_text().split("\n")
        try:
            return [EpochMetrics(**json.loads(line)) for line in lines]
        except (TypeError, ValueError) as error:
            raise InvalidData(f"{path} is damaged: {error}") from None

    def append_sights(self, sights: list[Sight]) -> None:
        """Add what was seen of the sparse layers in one step, durably."""
        header = "" if (self.path / "analysis.csv").exists() else _csv_line(f.name for f in fields(Sight))
        self._append("analysis.csv", header + "".join(_csv_line(astuple(sight)) for sight in sights))

    def truncate_sights(self, step: int) -> None:
        """Forget what was seen after `step`: a resumed run is going to see it again."""
        path = self.path / "analysis.csv"
        if not path.exists():
            return
        header, *lines = path.read_text().split("\n")[:-1]  # what follows the last end of line was cut off
        kept = [line for line in lines if int(line.partition(",")[0]) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in [header, *kept]).encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the final table, which also says that the run has finished."""
        write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def summary(self) -> dict[str, Any] | None:
        """The final table, or None where the run has not finished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def choose_folder(recipe: Recipe) -> Path:
    """A new folder below ``runs/``, named after the time and the recipe; the same one in all processes."""
    return Path("runs") / agree(f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}")


def versions() -> dict[str, Any]:
    """Software and hardware that a result depends on.

    Examples
    --------
    >>> versions()["torch"] == torch.__version__
    True
    """
    packages = ("torchswat", "numpy", "accelerate", "safetensors")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version_of(package) for package in packages},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _git_commit() -> str | None:
    """Commit of the checkout that the package runs from, with a mark if it was changed; None elsewhere."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    """Name of the processor as the kernel knows it, else as Python does."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _csv_line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
