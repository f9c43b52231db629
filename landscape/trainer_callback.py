"""trainer_recorder: a callback of Hugging Face's Trainer that records the training as a run file."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def trainer_recorder(
    trainer: Any,
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
    """A ``transformers.TrainerCallback`` that records the training of `trainer` in the run file `path`.

    The Trainer tells callbacks neither itself nor the loss of a step, only rounded means; so it is given here, and its
    ``training_step`` is listened to while it trains. A step is an optimiser step. Row t of the history holds the loss
    whose gradient update t followed, and the learning rate; checkpoint t is θ_t, from before that update, and the last
    one θ after the last (unless the best model was loaded in its place). Attrs name the optimiser, and the learning
    rate where ``lr_scheduler_type="constant"``: by default the Trainer lets it fall.

    At the end the run is "complete", or "diverged" if the last loss or θ is not finite; "interrupted" if a step raises
    or the process exits before. Where training goes on from a checkpoint (``train(resume_from_checkpoint=…)``) and the
    file exists, it goes on too. With several processes the first one writes, and the loss is that of its share of the
    samples. The Trainer divides the loss of a causal language model by the number of labels that are not −100: also by
    that of first tokens, which nothing predicts, unless their label is −100.

    Parameters
    ----------
    trainer : transformers.Trainer
        Give the callback to its ``add_callback``.
    path : str or path-like
        The file to create.
    every, model, dtype, second_moment, overwrite, attrs, config
        As for `lightning_recorder`; θ is by default that of ``trainer.model``.

    Returns
    -------
    transformers.TrainerCallback

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If an option is out of its range; when training begins, for L-BFGS, parameters sharded over processes, or a
        finished run that cannot go on.
    FileExistsError
        When training begins anew, if the file exists and `overwrite` is False.

    Examples
    --------
    >>> trainer = transformers.Trainer(model, arguments, train_dataset=dataset)  # doctest: +SKIP
    >>> trainer.add_callback(trainer_recorder(trainer, "run.h5", every=100))  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """
    from landscape.step_recorder import StepRecorder

    options = {"model": model, "dtype": dtype, "second_moment": second_moment, "overwrite": overwrite}
    return _callback()(trainer, StepRecorder(path, every=every, attrs=attrs, config=config, **options))


@cache
def _callback() -> type:
    """The class, built when it is first needed, as its base is."""
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "trainer_recorder needs transformers, which is not installed; pip install transformers accelerate"
        ) from None

    class TrainerRecorder(TrainerCallback):
        def __init__(self, trainer, recorder):
            self.trainer, self.recorder = trainer, recorder
            self.losses, self.listening, self.before = [], False, None

        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            self._release()
            if not state.is_world_process_zero:
                return
            own = getattr(self.trainer, "_created_lr_scheduler", False)
            constant = own and str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "constant"
            self.recorder.begin(model, optimizer, state.global_step, constant_rate=constant)
            self.losses = []
            self._listen()
            atexit.register(self.recorder.interrupt)  # the Trainer tells callbacks of no exception

        def on_step_begin(self, args, state, control, **kwargs):
            self.recorder.before_update(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            losses, self.losses = [float(loss) for loss in self.losses], []
            self.recorder.after_update(sum(losses))  # each is divided by their number, or by that of all tokens

        def on_train_end(self, args, state, control, **kwargs):
            replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self.recorder.end(state.global_step, last=not replaced)
            self._release()

        def _listen(self):
            self.before = self.trainer.__dict__.get("training_step")
            train = self.trainer.training_step

            def training_step(*args, **kwargs):
                try:
                    loss = train(*args, **kwargs)
                except BaseException:
                    self.recorder.interrupt()
                    self._release()
                    raise
                self.losses.append(loss.detach())
                return loss

            self.trainer.training_step, self.listening = training_step, True

        def _release(self):
            if self.listening:
                self.listening = False
                del self.trainer.training_step
                if self.before is not None:
                    self.trainer.training_step = self.before
            atexit.unregister(self.recorder.interrupt)

    return TrainerRecorder
