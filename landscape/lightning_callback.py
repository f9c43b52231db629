"""lightning_recorder: a callback of Lightning that records the training as a run file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""Lightning goes by two names; its classes are not the same in both."""


def lightning_recorder(
    path: str | os.PathLike,
    *,
    every: int = 1,
    model: torch.nn.Module | None = None,
    dtype: str | None = None,
    second_moment: bool = False,
    overwrite: bool = False,
    attrs: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
):
    """A Lightning ``Callback`` that records training in the run file `path`, for ``Trainer(callbacks=[…])``.

    A step is an optimiser step, of all the batches whose gradients it accumulates. Row t of the history holds the loss,
    the mean over these batches, and the learning rate of update t; checkpoint t is θ_t, from before that update, with
    the model's buffers (statistics of batch norms), and the last one θ after the last. Attrs name the optimiser, and
    the learning rate where no scheduler changes it.

    At the end the run is "complete", or "diverged" if the last loss or θ is not finite; after an exception or Ctrl-C,
    "interrupted". Where training goes on from a checkpoint (``fit(…, ckpt_path=…)``) and the file exists, it goes on
    too. With several processes the first one writes, and the loss is that of its share of the samples.

    Parameters
    ----------
    path : str or path-like
        The file to create.
    every : int
        Record θ at each step that is a multiple of it.
    model : torch.nn.Module, optional
        The module whose parameters make up θ, such as ``lightning_module.net``: the one that is given to `Objective`
        later, as names count from it. By default the LightningModule.
    dtype : {"float32", "float64"}, optional
        Stored type of θ; by default float64 if any parameter is, else float32, which holds half precision exactly.
    second_moment : bool
        Whether to record ν of Adam or RMSProp with θ, for preconditioned curvature.
    overwrite : bool
        Whether the file of another training may be replaced.
    attrs : mapping, optional
        Further attrs of the checkpoints; they replace those found.
    config : mapping, optional
        Everything needed to repeat the run; stored as JSON.

    Returns
    -------
    lightning.pytorch.Callback
        Of whichever package is imported, ``lightning`` or ``pytorch_lightning``.

    Raises
    ------
    ImportError
        If neither package is installed.
    ValueError
        If an option is out of its range; when training begins, for several optimisers, manual optimisation, L-BFGS,
        parameters sharded over processes, or a finished run that cannot go on.
    FileExistsError
        When training begins anew, if the file exists and `overwrite` is False.

    Examples
    --------
    >>> recorder = lightning_recorder("run.h5", every=100)  # doctest: +SKIP
    >>> lightning.Trainer(max_steps=10_000, callbacks=[recorder]).fit(module, loader)  # doctest: +SKIP
    """
    from landscape.step_recorder import StepRecorder

    options = {"model": model, "dtype": dtype, "second_moment": second_moment, "overwrite": overwrite}
    return _callback()(StepRecorder(path, every=every, attrs=attrs, config=config, **options))


def _package() -> str:
    for name in PACKAGES:
        if name in sys.modules:
            return name
    for name in PACKAGES:
        try:
            importlib.import_module(name)
            return name
        except ModuleNotFoundError as error:
            if error.name not in (name, name.split(".")[0]):
                raise
    raise ImportError("lightning_recorder needs Lightning, which is not installed; pip install lightning")


def _callback() -> type:
    return _callback_of(_package())


@cache
def _callback_of(package: str) -> type:
    """The class, built when it is first needed, as its base is."""

    class LightningRecorder(importlib.import_module(package).Callback):
        def __init__(self, recorder):
            self.recorder = recorder
            self.losses = []

        def on_train_start(self, trainer, pl_module):
            if not pl_module.automatic_optimization:
                raise ValueError(
                    "lightning_recorder needs automatic optimisation, to know the loss of each step; record a manual "
                    "loop with landscape.RunWriter"
                )
            if len(trainer.optimizers) != 1:
                raise ValueError(
                    f"lightning_recorder records one optimiser, and this module has {len(trainer.optimizers)}; record "
                    "such a loop with landscape.RunWriter"
                )
            self.losses = []
            if trainer.is_global_zero:
                constant = not trainer.lr_scheduler_configs
                self.recorder.begin(pl_module, trainer.optimizers[0], trainer.global_step, constant_rate=constant)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.recorder.before_update(trainer.global_step)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if loss is not None:  # Lightning has divided it
                self.losses.append(loss.detach() * trainer.accumulate_grad_batches)
            step = self.recorder.step
            if step is not None and trainer.global_step > step:
                losses, self.losses = [float(loss) for loss in self.losses], []
                self.recorder.after_update(sum(losses) / len(losses) if losses else float("nan"))

        def on_train_end(self, trainer, pl_module):
            self.recorder.end(trainer.global_step)

        def on_exception(self, trainer, pl_module, exception):
            self.recorder.interrupt()

    return LightningRecorder
