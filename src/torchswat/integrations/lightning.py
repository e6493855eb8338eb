"""`LightningCallback`: sparse training under the Trainer of Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.hooks import RemovableHandle

from torchswat.algorithms import Algorithm
from torchswat.convert import Sparsity, count_steps_, load_sparse_state_, sparse_layers, sparse_state
from torchswat.errors import MissingDependency
from torchswat.integrations.measures import measures
from torchswat.integrations.options import make_sparse_, settings_of

_MISSING: str | None = None
if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Callback  # pyright: ignore[reportMissingImports]
else:
    try:
        from lightning.pytorch import Callback as _Callback
    except ModuleNotFoundError as error:  # documentation tools read the module where the library is missing
        _Callback, _MISSING = object, error.name

STATE = "torchswat_sparse_state"
"""The key of the sparse state in a checkpoint of Lightning."""


class LightningCallback(_Callback):
    """Trains a LightningModule sparsely: makes it sparse, counts the optimizer's steps, saves, resumes, logs.

    In `setup` it calls `torchswat.sparsify_` on the module, whose layers must be there by then (made in ``__init__``).
    Schedules of sparsity count the steps of the first optimizer, whatever ``accumulate_grad_batches`` is. Checkpoints
    carry what sparse layers remember under a key of their own, so a training that is resumed by ``ckpt_path`` is the
    uninterrupted one bit for bit where Lightning's own is; the module's state_dict keeps the keys of the plain module.

    Parameters
    ----------
    algorithm : str, Algorithm or Sparsity, optional
        As in `torchswat.sparsify_`; "swat" where an option is given. Without any setting the module must be made
        sparse by its own code, such as ``configure_model``.
    example : Tensor, tuple or mapping, optional
        An input of the module's ``forward``, on its device, such as its ``example_input_array``. With it the
        counted savings are logged, for which a copy of the module runs one step on it at every logging: a small
        batch does.
    log_layers : bool, default False
        Whether the numbers of every layer are logged, beside their means.
    save_state : bool, default False
        As in `torchswat.sparsify_`: with it ``trainer.test(ckpt_path=...)`` of a new process, for which Lightning does
        not load what callbacks saved, evaluates at the sparsity of a schedule.
    **options : Any
        ``sparsity``, ``skip``, ``scope``, ``period`` and the other settings of `torchswat.Sparsity`.

    Raises
    ------
    InvalidValue, UnknownName
        For settings that `torchswat.Sparsity` refuses.
    MissingDependency
        Where lightning is not installed.

    Notes
    -----
    Logged through the module's ``log_dict``, every ``log_every_n_steps`` steps, to whatever loggers the trainer has:
    ``torchswat/sparsity``, ``torchswat/weight_density``, ``torchswat/activation_density``, the thresholds
    (``torchswat/weight_threshold``, ...), all as means over the sparse layers, and of an example
    ``torchswat/macs_saving``, ``torchswat/weight_bytes_saving``, ``torchswat/activation_bytes_saving``.

    References
    ----------
    SWAT, Algorithm 1; the interface is that of ``lightning.pytorch.Callback``.

    Examples
    --------
    >>> import lightning.pytorch as lightning  # doctest: +SKIP
    >>> trainer = lightning.Trainer(callbacks=[LightningCallback(sparsity=0.8)])  # doctest: +SKIP
    >>> trainer.fit(module, images)  # doctest: +SKIP
    """

    def __init__(
        self,
        algorithm: str | Algorithm | Sparsity | None = None,
        *,
        example: Any = None,
        log_layers: bool = False,
        save_state: bool = False,
        **options: Any,
    ) -> None:
        if _MISSING:
            raise MissingDependency(
                f'LightningCallback needs {_MISSING}, which is not installed: pip install "torchswat[lightning]"'
            )
        self.settings: Sparsity | None = settings_of(algorithm, options)
        self.example: Any = example
        self.log_layers: bool = log_layers
        self.save_state: bool = save_state
        self._counting: RemovableHandle | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make the module sparse, before Lightning wraps it for several processes."""
        make_sparse_(pl_module, self.settings, self.save_state)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the sparse state into the checkpoint."""
        checkpoint[STATE] = sparse_state(pl_module)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Load the sparse state; a checkpoint of a dense training has none, and iterations count from 0."""
        if checkpoint.get(STATE):
            load_sparse_state_(pl_module, checkpoint[STATE])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the optimizer's steps from now on."""
        self._stop_counting()
        dense = self.settings is not None and next(sparse_layers(pl_module), None) is None
        if not dense and trainer.optimizers:
            self._counting = count_steps_(pl_module, trainer.optimizers[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Log what the last step kept, where Lightning logs."""
        interval = trainer.log_every_n_steps
        if interval and trainer.global_step % interval == 0 and trainer.is_global_zero:
            pl_module.log_dict(measures(pl_module, self.example, self.log_layers), rank_zero_only=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let passes count again."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.remove()
            self._counting = None
