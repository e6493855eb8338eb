"""The training loop: what it does in which order, and what it leaves behind when it stops."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast, gather_object
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard.writer import SummaryWriter

from torchswat.convert import sparse_state
from torchswat.data import Batches
from torchswat.engine import plan
from torchswat.errors import CheckpointError, InvalidData, InvalidValue, NotFinite
from torchswat.progress import Progress as Report
from torchswat.progress import counted
from torchswat.terminal import bar
from torchswat.training import checkpoint as checkpoints
from torchswat.training.average import AveragedWeights
from torchswat.training.build import (
    build_model,
    build_optimizer,
    initialise_from_data_,
    load_weights_,
    set_learning_rates_,
    test_batches,
    train_batches,
)
from torchswat.training.check_data import data_of_run
from torchswat.training.checkpoint import Checkpoint, Progress
from torchswat.training.diagnose import first_not_finite, is_finite
from torchswat.training.display import Display
from torchswat.training.evaluate import autocast_to, batch_sums, evaluate, means
from torchswat.training.finish import Summary, summarise
from torchswat.training.interrupt import Interrupted, StopRequest
from torchswat.training.lock import FolderLock
from torchswat.training.plot import plot_curves
from torchswat.training.processes import agree, is_main_process, make_accelerator
from torchswat.training.recipe import Recipe, differing_keys, make_recipe
from torchswat.training.recover import recover
from torchswat.training.run_folder import EpochMetrics, RunFolder, resume_command
from torchswat.training.timed import timed
from torchswat.training.views import Views, check_views
from torchswat.training.watch import Watch

logger = logging.getLogger(__name__)


def train(recipe: Recipe, output: str | Path, *, console: Console | None = None) -> Summary:
    """Train a network as a recipe says, from its beginning to the final table.

    Under ``accelerate launch`` or ``torchrun`` every process calls it alike; `output` must then lie where all
    of them can read it.

    Parameters
    ----------
    recipe : Recipe
        What to do; see `load_recipe`.
    output : str or Path
        Folder of the run. It may exist, but may not hold a run already.
    console : rich.console.Console, optional
        Where progress is shown; by default nothing is.

    Returns
    -------
    Summary
        Accuracies of the sparse and of the pruned network, and the operations and bytes saved.

    Raises
    ------
    InvalidValue
        The folder holds a run already, another process trains into it, or the batch size cannot be shared
        among the processes.
    NotFinite
        Loss or gradient became NaN or infinite; the message names the layer.
    CheckpointError
        A file could not be written; the previous checkpoint is intact.
    Interrupted
        Ctrl-C or SIGTERM came; a checkpoint was written.
    """
    folder = RunFolder(Path(output))
    with _locked(folder):
        folder.refuse_existing()
        trainer = Trainer(recipe, folder.path, console)
        trainer.begin()
        return trainer.run()


def resume(folder: str | Path, *, console: Console | None = None) -> Summary:
    """Continue a run that stopped for whatever reason, bit for bit as if it had not.

    It continues from the newest checkpoint that is not damaged. A run that was killed before its first
    checkpoint starts again; one that has finished is only read.

    Parameters
    ----------
    folder : str or Path
        What `train` was given as `output`.
    console : rich.console.Console, optional
        As for `train`.

    Raises
    ------
    MissingData, InvalidData
        There is no run in `folder`, all its checkpoints are damaged or gone, or its data set has changed.
    InvalidValue
        The run was made by another number of processes, or another process trains into its folder.
    """
    run_folder = RunFolder.open(Path(folder))
    finished = run_folder.summary()
    if finished is not None:
        return Summary.from_json(finished)
    with _locked(run_folder):
        trainer = Trainer(run_folder.recipe(), run_folder.path, console, run_folder.data_record())
        trainer.restore()
        return trainer.run()


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of the folder in the main process; Ctrl-C within says how to go on."""
    with FolderLock(folder.path) if is_main_process() else nullcontext():
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(_way_on(folder)) from None


def _way_on(folder: RunFolder) -> str:
    if not folder.exists():
        return "interrupted before the run began"
    return f"interrupted; what was saved is kept. Continue with: {resume_command(folder.path)}"


class Trainer:
    """One run: the network, its optimizer, its data, and where it stands."""

    def __init__(
        self, recipe: Recipe, path: Path, console: Console | None, data_record: dict[str, Any] | None = None
    ) -> None:
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.folder = RunFolder(path)
        self.console = console or Console(quiet=True)
        self.accelerator = make_accelerator()
        self.processes = self.accelerator.num_processes
        speaks = self.console if self.accelerator.is_main_process else Console(quiet=True)
        self.data, self.data_record = data_of_run(recipe, speaks, data_record)
        check_views(recipe.views, recipe, self.data)
        share = (self.accelerator.process_index, self.processes)
        self.train_batches = train_batches(recipe, self.data, *share)
        self.test_batches = test_batches(recipe, self.data, *share)
        self.steps_per_epoch = len(self.train_batches)
        self.model = build_model(recipe, self.data, self.steps_per_epoch)
        self.network, self.optimizer = self.accelerator.prepare(
            self.model, build_optimizer(recipe, self.model)
        )
        self.loss_function = partial(cross_entropy, label_smoothing=recipe.optimizer.label_smoothing)
        self.average: AveragedWeights | None = None
        self.watch = Watch(self.model, recipe.analysis.quantities)
        self.progress = Progress()
        self.sums: Tensor = torch.zeros(
            3, dtype=torch.float64
        )  # loss, correct, images: of the epoch under way
        self.saved_at = -1
        self.notes: list[str] = []
        self.events: SummaryWriter | None = None
        # Each process draws from the same stream: masks that are drawn for weights must agree among them.
        torch.manual_seed(recipe.seed + 1)

    # ---- beginning and going on --------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the folder of a new run, and what its network takes from the data."""
        if self.accelerator.is_main_process:
            RunFolder.create(self.folder.path, self.recipe).record_data(self.data_record)
        self.accelerator.wait_for_everyone()
        self._initialise()

    def _initialise(self) -> None:
        initialise_from_data_(self.recipe, self.model, self.data)
        if self.processes > 1:
            broadcast([parameter.detach() for parameter in self.model.parameters()])
        self._average_from_here()

    def _average_from_here(self) -> None:
        decay = self.recipe.optimizer.average
        self.average = None if decay is None else AveragedWeights(self.model, decay)

    def restore(self) -> None:
        """Go back to the newest checkpoint that is whole, and forget what was recorded after it."""
        found = recover(self.folder) if self.accelerator.is_main_process else None
        words = found and json.dumps([str(found.checkpoint or ""), asdict(found.progress)])
        path, progress = json.loads(agree(words or ""))
        if path:
            self._load(Checkpoint.load(Path(path)), Progress(**progress))
            self.saved_at = self.progress.step
        else:
            self._initialise()
        self.accelerator.wait_for_everyone()
        if found is not None:
            self.folder.truncate_metrics(self.progress.epoch)
            self.folder.truncate_sights(self.progress.step)
            found.set_aside()
            self.folder.record_data(self.data_record)
            for note in found.notes:
                self._note(note)

    def _note(self, note: str) -> None:
        """Tell the user, and the folder of the run, what is unusual about this start."""
        self.notes.append(note)
        if self.console.quiet:
            logger.warning(note)
        else:
            self.console.print(f"note: {note}", markup=False, highlight=False)

    def _load(self, saved: Checkpoint, progress: Progress) -> None:
        changed = differing_keys(self.recipe, make_recipe(saved.recipe))
        if changed:
            raise InvalidData(
                f"{self.folder.path / 'recipe.yaml'} differs from the recipe in the checkpoint in "
                f"{', '.join(changed)}: a run continues as it was begun. Undo the change, or train in "
                "another folder."
            )
        if saved.processes != self.processes:
            raise InvalidValue(
                f"the run was made by {saved.processes} process(es) and can be resumed by as many, "
                f"not by {self.processes}"
            )
        rank = self.accelerator.process_index
        load_weights_(self.model, saved, rank)
        self._average_from_here()
        if self.average is not None:
            self.average.model.load_state_dict(saved.average)
        checkpoints.load_optimizer_tensors_(self.model, self._plain_optimizer, saved.optimizer)
        mine = saved.ranks[rank]
        self.sums = mine["sums"]
        torch.set_rng_state(mine["rng/torch"])
        if "rng/cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["rng/cuda"])
        self.progress = progress

    # ---- the run -----------------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Train the epochs that remain, then prune and summarise."""
        main = self.accelerator.is_main_process
        if main:
            self.folder.record_versions(self.processes, self.notes)
            # Events recorded after the checkpoint are purged: the run is going to repeat them.
            self.events = SummaryWriter(self.folder.path / "tensorboard", purge_step=self.progress.step + 1)
        console = self.console if main else Console(quiet=True)
        epochs = self.recipe.optimizer.epochs
        with plan.followed(self.folder.path / "plan.json"):  # resumed, the run takes the same kernels
            try:
                with StopRequest() as stop, Display(console, epochs, self.steps_per_epoch) as display:
                    while self.progress.epoch < epochs:
                        seconds, waited = self._train_epoch(stop, display)
                        self._end_epoch(seconds, waited, display)
                        self._stop_if_asked(stop)
            finally:
                if self.events is not None:
                    self.events.close()
            return self._finish()

    def _train_epoch(self, stop: StopRequest, display: Display) -> tuple[float, float]:
        """Take the steps of the epoch that remain; return their seconds, and those spent waiting for batches."""
        self.network.train()
        started, waited, seen_before = time.perf_counter(), 0.0, float(self.sums[2])
        self.train_batches.set_epoch(self.progress.epoch, start=self.progress.step_in_epoch)
        for waiting, (images, labels) in timed(self.train_batches):
            waited += waiting
            self._look_at_step(images.to(self.device), labels.to(self.device))
            self.progress = self.progress.next_step()
            loss, accuracy = means(self.sums)
            seconds = time.perf_counter() - started
            speed = self.processes * (float(self.sums[2]) - seen_before) / seconds
            display.step(self.progress.epoch + 1, self.progress.step, loss, accuracy, speed)
            every = self.recipe.checkpoint.every_steps
            if (
                every
                and self.progress.step % every == 0
                and self.progress.step_in_epoch < self.steps_per_epoch
            ):
                self._save()
            self._stop_if_asked(stop)
        return time.perf_counter() - started, waited

    def _look_at_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step, and record what is seen of the sparse layers where the recipe wants that."""
        every, step = self.recipe.analysis.every_steps, self.progress.step + 1
        if every is None or step % every or self.events is None:
            self._step(images, labels)
            return
        with self.watch.looking():
            self._step(images, labels)
        sights = self.watch.sights(step)
        self.folder.append_sights(sights)
        for sight in sights:
            for quantity in self.watch.quantities:
                value = getattr(sight, quantity)
                if value is not None:
                    self.events.add_scalar(f"{quantity}/{sight.operand}/{sight.layer}", value, step)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """One step of stochastic gradient descent; the weights only change if everything is finite."""
        try:
            with autocast_to(self.recipe.precision, self.device):
                outputs = self.network(images).float()
            loss = self.loss_function(outputs, labels)
            self.accelerator.backward(loss)
        except NotFinite as error:  # a sparse layer refuses to select among NaN
            raise self._not_finite(str(error)) from None
        loss = loss.detach()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not (torch.isfinite(loss) and is_finite(gradients)):
            culprit = first_not_finite(self.model, images, labels, self.loss_function, self.recipe.precision)
            raise self._not_finite(f"{culprit} is not finite")
        set_learning_rates_(self.recipe, self._plain_optimizer, self.progress.step / self.steps_per_epoch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, self.progress.step + 1)
        self.sums += batch_sums(loss, outputs, labels)
        if self.events is not None:
            self.events.add_scalar("step/loss", loss.item(), self.progress.step + 1)

    def _end_epoch(self, seconds: float, waited: float, display: Display) -> None:
        """Evaluate, record the epoch, save."""
        if self.processes > 1:
            # Batch norm's statistics: those of the first process count.
            averaged = self.average.model.buffers() if self.average else ()
            broadcast([*self.model.buffers(), *averaged])
        train_sums = self._total(self.sums)
        train_loss, train_accuracy = means(train_sums)
        test_loss, test_accuracy = self.evaluate(self.model)
        average_accuracy = self.evaluate(self.average.model)[1] if self.average else None
        last_step = (self.progress.step - 1) / self.steps_per_epoch
        epoch = self.progress.epoch + 1
        row = EpochMetrics(
            epoch=epoch,
            step=self.progress.step,
            learning_rate=self.recipe.optimizer.lr_at(last_step),
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            seconds=round(seconds, 3),
            images_per_second=round(float(train_sums[2]) / seconds, 1),
            data_seconds=round(waited, 3),
            average_accuracy=average_accuracy,
        )
        self.progress = self.progress.next_epoch()
        self.sums = torch.zeros(3, dtype=torch.float64)
        if test_accuracy > self.progress.best_accuracy:
            self.progress = replace(self.progress, best_accuracy=test_accuracy, best_step=self.progress.step)
        if self.events is not None:
            self.folder.append(row)
            for name, value in row.to_dict().items():
                if name not in ("epoch", "step", "seconds", "images_per_second"):
                    self.events.add_scalar(f"epoch/{name}", value, row.step)
        display.epoch(row)
        self._save()

    def evaluate(
        self, model: nn.Module, views: Views = "plain", progress: Report | None = None
    ) -> tuple[float, float]:
        """Test loss and accuracy in per cent; the processes share the images."""
        how = {"device": self.device, "views": views, "precision": self.recipe.precision}
        sums = evaluate(model, counted(self.test_batches, progress), **how)
        loss, accuracy = means(self._total(sums))
        if loss != loss or loss in (float("inf"), -float("inf")):
            raise self._not_finite("the loss on the test images is not finite")
        return loss, accuracy

    # ---- stopping ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of this instant and discard those that are no longer needed."""
        mine = {"sums": self.sums, "rng/torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            mine["rng/cuda"] = torch.cuda.get_rng_state()
        mine |= {f"sparse/{name}": tensor.cpu() for name, tensor in sparse_state(self.model).items()}
        ranks = gather_object([mine]) if self.processes > 1 else [mine]
        if self.accelerator.is_main_process:
            assert self.events is not None
            self.events.flush()
            saved = Checkpoint(
                recipe=self.recipe.model_dump(mode="json"),
                progress=self.progress,
                processes=self.processes,
                model=self.model.state_dict(),
                optimizer=checkpoints.optimizer_tensors(self.model, self._plain_optimizer),
                ranks=ranks,
                average=self.average.model.state_dict() if self.average else {},
            )
            self._write(saved)
        self.saved_at = self.progress.step
        self.accelerator.wait_for_everyone()

    def _write(self, saved: Checkpoint) -> None:
        folder = self.folder.checkpoints
        try:
            saved.save(checkpoints.checkpoint_path(folder, saved.progress.step))
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {self._way_back()}") from error
        checkpoints.discard_old(folder, self.recipe.checkpoint.keep, saved.progress.best_step)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        """Save and leave, if any process was asked to; called where all processes are at the same step."""
        if not self._total(torch.tensor([float(stop.requested)])).item():
            return
        if self.saved_at != self.progress.step:
            self._save()
        raise Interrupted(
            f"interrupted after step {self.progress.step}, which is saved. Continue with: {self._command()}"
        )

    def _not_finite(self, problem: str) -> NotFinite:
        place = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"
        return NotFinite(
            f"training stopped at {place}: {problem}. A lower optimizer.lr often helps. {self._way_back()}"
        )

    def _way_back(self) -> str:
        newest = self.folder.latest_checkpoint()
        if newest is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {newest}; continue from it with: {self._command()}"

    def _command(self) -> str:
        return resume_command(self.folder.path)

    # ---- the end -----------------------------------------------------------------------------------------

    def _finish(self) -> Summary:
        """Prune the best and the last checkpoint, evaluate them again, count the savings, draw the curves."""
        rows = self.folder.metrics()
        speaks = self.console if self.accelerator.is_main_process else Console(quiet=True)
        with bar("pruning and evaluating", speaks) as progress:
            summary = summarise(
                self.recipe,
                self.data,
                best=checkpoints.checkpoint_path(self.folder.checkpoints, self.progress.best_step),
                last=checkpoints.checkpoint_path(self.folder.checkpoints, self.progress.step),
                measure=lambda model, views: self.evaluate(model.to(self.device), views, progress)[1],
                example=self._example(),
                seconds=sum(row.seconds for row in rows),
            )
        if self.accelerator.is_main_process:
            plot_curves(rows, self.folder.path, f"{self.recipe.model.name}, {summary.title}")
            self.folder.write_summary(summary.to_json())
        self.accelerator.wait_for_everyone()
        return summary

    # ---- small things ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.accelerator.device

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer  # inside accelerate's

    def _example(self) -> Tensor:
        """A few test images, for counting what a step costs."""
        few = self.data.test.subset(torch.arange(min(16, len(self.data.test))))
        return next(iter(Batches(few, len(few))))[0]

    def _total(self, sums: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.processes == 1:
            return sums
        return cast(Tensor, self.accelerator.reduce(sums.to(self.device), "sum")).cpu()
