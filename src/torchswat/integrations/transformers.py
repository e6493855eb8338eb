"""`TrainerCallback`: sparse training under the Trainer of Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchswat.algorithms import Algorithm
from torchswat.convert import Sparsity, count_steps_, load_sparse_state_, sparse_layers, sparse_state
from torchswat.errors import MissingDependency
from torchswat.integrations.measures import measures
from torchswat.integrations.options import make_sparse_, settings_of

_MISSING: str | None = None
if TYPE_CHECKING:
    from transformers.trainer_callback import ExportableState as _Exportable
    from transformers.trainer_callback import TrainerCallback as _Callback
else:
    try:
        from transformers import TrainerCallback as _Callback
        from transformers.trainer_callback import ExportableState as _Exportable
    except ModuleNotFoundError as error:  # documentation tools read the module where the library is missing
        _Callback, _Exportable = object, type("ExportableState", (), {})
        _MISSING = error.name


class TrainerCallback(_Callback):
    """Trains the model of a Trainer sparsely: makes it sparse, counts the optimizer's steps, saves, resumes, logs.

    It calls `torchswat.sparsify_` on the trainer's model at once, before anything wraps it. Schedules of sparsity count
    optimizer steps, whatever ``gradient_accumulation_steps`` is. What sparse layers remember stands in the
    ``trainer_state.json`` of every checkpoint, so a training that is resumed by ``resume_from_checkpoint`` is the
    uninterrupted one bit for bit where Trainer's own is; the files of weights keep the keys of the plain model.

    Parameters
    ----------
    trainer : transformers.Trainer
        The one that the callback is added to. Its model is made sparse, and its ``log`` is called.
    algorithm : str, Algorithm or Sparsity, optional
        As in `torchswat.sparsify_`; "swat" where an option is given. Without any setting the model must be sparse
        already.
    example : Tensor, tuple or mapping, optional
        An input of the model, on its device. With it the counted savings are logged, for which a copy of the model
        runs one step on it at every logging: a small batch does.
    log_layers : bool, default False
        Whether the numbers of every layer are logged, beside their means.
    **options : Any
        ``sparsity``, ``skip``, ``scope``, ``period`` and the other settings of `torchswat.Sparsity`.

    Raises
    ------
    InvalidValue, UnknownName
        For settings that `torchswat.Sparsity` refuses, or a model that is sparse with other settings.
    MissingDependency
        Where transformers is not installed.

    Notes
    -----
    Logged through ``trainer.log`` after each of Trainer's own logs of the loss, to whatever ``report_to`` names:
    ``torchswat/sparsity``, ``torchswat/weight_density``, ``torchswat/activation_density``, the thresholds
    (``torchswat/weight_threshold``, ...), all as means over the sparse layers, and of an example
    ``torchswat/macs_saving``, ``torchswat/weight_bytes_saving``, ``torchswat/activation_bytes_saving``.

    References
    ----------
    SWAT, Algorithm 1; the interface is that of ``transformers.TrainerCallback``.

    Examples
    --------
    >>> import tempfile, transformers
    >>> class Network(nn.Sequential):
    ...     def forward(self, pixels, labels):
    ...         return {"loss": nn.functional.cross_entropy(super().forward(pixels), labels)}
    >>> images = [{"pixels": torch.randn(64), "labels": number % 10} for number in range(32)]
    >>> arguments = {"max_steps": 4, "report_to": "none", "use_cpu": True, "dataloader_pin_memory": False}
    >>> arguments |= {"logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    >>> model = Network(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     arguments = transformers.TrainingArguments(folder, **arguments)
    ...     trainer = transformers.Trainer(model, arguments, train_dataset=images)
    ...     trainer.add_callback(TrainerCallback(trainer, sparsity=0.8))
    ...     result = trainer.train()
    {'train_runtime': ...}
    >>> [layer.sparse.iteration for _, layer in sparse_layers(model)]
    [4, 4]
    """

    def __init__(
        self,
        trainer: Any,
        algorithm: str | Algorithm | Sparsity | None = None,
        *,
        example: Any = None,
        log_layers: bool = False,
        **options: Any,
    ) -> None:
        if _MISSING:
            raise MissingDependency(
                f'TrainerCallback needs {_MISSING}, which is not installed: pip install "torchswat[transformers]"'
            )
        self.trainer: Any = trainer
        self.example: Any = example
        self.log_layers: bool = log_layers
        self.settings: Sparsity | None = settings_of(algorithm, options)
        self._counting: RemovableHandle | None = None
        make_sparse_(trainer.model, self.settings)
        trainer.add_callback(SparseState())

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Load the sparse state that a checkpoint brought, and count the optimizer's steps from now on."""
        model = objects["model"]
        make_sparse_(model, self.settings)  # ``model_init`` made another one
        self._stop_counting()
        if self.settings is None or next(sparse_layers(model), None) is not None:
            saved = state.stateful_callbacks.get(SparseState.__name__, {}).get("attributes", {})
            if state.global_step and saved.get("words"):
                load_sparse_state_(model, _tensors(saved["words"]))
            self._counting = count_steps_(model, objects["optimizer"])

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Log what the last step kept, where Trainer logs the loss."""
        if logs and "loss" in logs and state.is_world_process_zero:
            self.trainer.log(measures(self.trainer.model, self.example, self.log_layers))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let passes count again."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.remove()
            self._counting = None


class SparseState(_Exportable, _Callback):
    """Writes what sparse layers remember into the ``trainer_state.json`` of a checkpoint.

    Trainer makes such a callback anew, without arguments, where ``restore_callback_states_from_checkpoint`` is set:
    so it is one of its own, which `TrainerCallback` adds.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Know the model; a checkpoint of a dense training has no entry, and Trainer looks for one when it saves."""
        self.model = objects["model"]
        state.stateful_callbacks.setdefault(type(self).__name__, {})

    def state(self) -> dict[str, Any]:
        """Return what Trainer writes, as plain numbers."""
        words = {} if self.model is None else _numbers(sparse_state(self.model))
        return {"args": {}, "attributes": {"words": words}}


def _numbers(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "values": tensor.tolist()}
        for name, tensor in state.items()
    }


def _tensors(numbers: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.tensor(one["values"], dtype=getattr(torch, one["dtype"])) for name, one in numbers.items()
    }
