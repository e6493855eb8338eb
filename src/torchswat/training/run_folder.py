"""The folder of a run: all that is needed to repeat it, to continue it and to judge it.

==================  ==========================================================================================
``recipe.yaml``     every value of the recipe as it was run; ``torchswat train --recipe`` takes it
``data.json``       how many images the run uses, their checksum, and the broken files that were left out
``versions.json``   software, git commit and hardware, one entry each time the run was started or resumed
``metrics.csv``     one row an epoch
``metrics.jsonl``   the same, one JSON object a line
``analysis.csv``    thresholds, angles and densities of the sparse layers, where the recipe asks for them
``tensorboard/``    the same as events, and the training loss of single steps
``checkpoints/``    see docs/checkpoints.md
``curves.svg/png``  the learning curves
``summary.json``    the final table; there once the run has finished
``.lock``           locked while a training writes into the folder
==================  ==========================================================================================
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from torchswat.errors import CheckpointError, InvalidData, InvalidValue, MissingData, UnknownName
from torchswat.files import write_atomically
from torchswat.training.checkpoint import list_checkpoints
from torchswat.training.processes import agree
from torchswat.training.recipe import Recipe, load_recipe
from torchswat.training.watch import Sight

Json = TypeVar("Json", dict[str, Any], list[Any])


@dataclass(frozen=True)
class EpochMetrics:
    """One row of the metrics: an epoch's means. Accuracies are in per cent, losses in nats an image."""

    epoch: int
    step: int
    learning_rate: float  # of the epoch's last step
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float  # of training, evaluation not included; since the resume where the epoch was interrupted
    images_per_second: float
    data_seconds: float | None = None  # of those, waiting for the next batch; None in runs of older versions
    average_accuracy: float | None = None  # on the test images, of the averaged weights where there are any

    def to_dict(self) -> dict[str, Any]:
        """The values that there are."""
        return {key: value for key, value in asdict(self).items() if value is not None}


# All of them in every run: the table of a run that an older version began has no row longer than its header.
_COLUMNS = tuple(field.name for field in fields(EpochMetrics))


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
        self.checkpoints: Path = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Begin a new run in `path`, which may exist but may not hold a run."""
        folder = cls(path)
        folder.refuse_existing()
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {folder.checkpoints}: {error.strerror or error}") from error
        write_atomically(path / "recipe.yaml", recipe.to_yaml().encode())
        return folder

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "recipe.yaml").exists()

    def refuse_existing(self) -> None:
        """Raise InvalidValue where the folder holds a run."""
        if self.exists():
            raise InvalidValue(
                f"{self.path} already holds a run. Continue it with `{resume_command(self.path)}`, "
                "or choose another folder with --output."
            )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that was begun before."""
        if not (path / "recipe.yaml").is_file():
            raise MissingData(f"{path} is not the folder of a run: it holds no recipe.yaml")
        return cls(path)

    def recipe(self) -> Recipe:
        """The recipe that was run; raise InvalidData, which names the file, where it does not hold one."""
        path = self.path / "recipe.yaml"
        try:
            return load_recipe(path)
        except (InvalidValue, UnknownName) as error:
            raise InvalidData(f"{path} cannot be used: {error}") from None

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint, or None where the run had not come so far."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def record_data(self, record: dict[str, Any]) -> None:
        """Write which images the run uses."""
        self._write_json("data.json", record)

    def data_record(self) -> dict[str, Any] | None:
        """Which images the run uses; None where no version of torchswat has recorded it yet."""
        return self._read_json("data.json", dict)

    def record_versions(self, processes: int, notes: Sequence[str] = ()) -> None:
        """Record software and hardware, and `notes` of what was unusual; a resumed run adds an entry."""
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"started": started, **versions(), "processes": processes}
        entries = self._read_json("versions.json", list) or []
        self._write_json("versions.json", [*entries, {**entry, "notes": list(notes)} if notes else entry])

    def append(self, row: EpochMetrics) -> None:
        """Add an epoch to both files of metrics, durably: a checkpoint that counts on it is written next."""
        self._append("metrics.jsonl", json.dumps(row.to_dict()) + "\n")
        header = "" if (self.path / "metrics.csv").exists() else _csv_line(_COLUMNS)
        self._append("metrics.csv", header + _csv_line(astuple(row)))

    def truncate_metrics(self, epochs: int) -> None:
        """Forget the epochs after the first `epochs`: a resumed run is going to repeat them."""
        kept = self.metrics()[:epochs]
        if len(kept) < epochs:
            raise InvalidData(
                f"{self.path / 'metrics.jsonl'} holds {len(kept)} epochs but the checkpoint has {epochs}; "
                "the file was changed or damaged since"
            )
        table = "".join(_csv_line(line) for line in (_COLUMNS, *map(astuple, kept)))
        write_atomically(self.path / "metrics.csv", table.encode())
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in kept)
        write_atomically(self.path / "metrics.jsonl", lines.encode())

    def metrics(self) -> list[EpochMetrics]:
        """The epochs recorded so far. A last line that a killed run left half-written is not counted."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
            return [EpochMetrics(**json.loads(line)) for line in lines]
        except (OSError, TypeError, ValueError) as error:
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
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
            # The last line was cut off, or is empty.
            kept = [line for line in lines if int(line.partition(",")[0]) <= step]
        except (OSError, ValueError) as error:
            raise InvalidData(f"{path} is damaged: {error}. Move it away to continue the run.") from None
        header = _csv_line(field.name for field in fields(Sight))
        write_atomically(path, (header + "".join(f"{line}\n" for line in kept)).encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the final table, which also says that the run has finished."""
        self._write_json("summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        """The final table, or None where the run has not finished."""
        return self._read_json("summary.json", dict)

    def _write_json(self, name: str, content: Any) -> None:
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def _read_json(self, name: str, kind: type[Json]) -> Json | None:
        """The content of a file, or None where it does not exist."""
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path, error) from None
        if not isinstance(content, kind):
            raise _damaged(path, f"it holds no {kind.__name__}")
        return content

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def _damaged(path: Path, problem: object) -> InvalidData:
    return InvalidData(f"{path} is damaged ({problem}). Move it away, and resuming the run writes it again.")


def resume_command(path: Path) -> str:
    """The command that continues the run in a folder, as a shell takes it.

    Examples
    --------
    >>> resume_command(Path("runs/my run"))
    "torchswat train --resume 'runs/my run'"
    """
    return shlex.join(["torchswat", "train", "--resume", str(path)])


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
