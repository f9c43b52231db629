"""One optimiser step after another of somebody else's training loop, handed to a `RunWriter`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.optimizer_attrs import optimizer_attrs, second_moment, unwrapped
from landscape.params import ParamLayout
from landscape.run_writer import RunWriter


class StepRecorder:
    """Row t holds loss and learning rate of update t, and every `every` steps θ_t and buffers from before the update.

    The options are those of `landscape.lightning_recorder`. The caller says when training begins, when an update is
    about to begin, when it was made, and when training ends.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        every: int,
        model: torch.nn.Module | None,
        dtype: str | None,
        second_moment: bool,
        overwrite: bool,
        attrs: Mapping[str, Any] | None,
        config: Mapping[str, Any] | None,
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if dtype not in (None, "float32", "float64"):
            raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
        self.path, self.every, self.own, self.dtype = Path(path), every, model, dtype
        self.with_moments, self.overwrite = second_moment, overwrite
        self.attrs, self.config = dict(attrs or {}), config
        self.writer: RunWriter | None = None
        self.step: int | None = None

    def begin(self, model: torch.nn.Module, optimizer: Any, step: int, *, constant_rate: bool) -> None:
        """Create the file, or go on with it where training goes on from `step`."""
        self.interrupt()
        self.model = _uncompiled(model if self.own is None else self.own)
        self.optimizer = unwrapped(optimizer)
        refuse_sharded(self.model)
        self.layout, self.buffers = ParamLayout.of(self.model), ParamLayout.of_buffers(self.model)
        attrs = optimizer_attrs(self.optimizer, constant_rate=constant_rate)
        if self.with_moments:
            second_moment(self.optimizer, self.model, self.layout)  # refused now, not after an hour
        wide = any(p.dtype == torch.float64 for p in self.model.parameters() if p.requires_grad)
        self.kind = np.dtype(self.dtype or ("float64" if wide else "float32"))
        resume = step > 0 and self.path.exists()
        self.writer = RunWriter(
            self.path,
            self.layout,
            history=["loss", "learning_rate"],
            attrs=attrs | self.attrs,
            config=self.config,
            dtype=self.kind.name,
            overwrite=self.overwrite and not resume,
            resume=resume,
            optimizer_state=["second_moment"] if self.with_moments else (),
            buffers=self.buffers,
        )
        self.loss = 0.0

    def before_update(self, step: int) -> None:
        """Copy what is needed of the state before update `step`; asked again within the same step, do nothing."""
        if self.writer is None or step == self.step:
            return
        self.step = step
        self.rate = float(self.optimizer.param_groups[0]["lr"])
        self.saved = self._saved() if step % self.every == 0 else {}

    def after_update(self, loss: float) -> None:
        """Record the update that `before_update` announced."""
        if self.writer is None or self.step is None:
            return
        self.loss = loss
        self.writer.append(self.step, **self.saved, loss=loss, learning_rate=self.rate)
        self.step = None

    def end(self, step: int, *, last: bool = True) -> None:
        """Record θ after the last update, unless it is no longer there, and finish the run."""
        if self.writer is None:
            return
        saved = self._saved()
        if last:
            self.writer.append(step, **saved)
        finite = np.isfinite(self.loss) and bool(saved["params"].isfinite().all())
        self._finish("complete" if finite else "diverged")

    def interrupt(self) -> None:
        """Finish the run as interrupted, if it is not finished."""
        if self.writer is not None:
            self._finish("interrupted")

    def _finish(self, status: str) -> None:
        writer, self.writer, self.step = self.writer, None, None
        writer.finish(status)

    def _saved(self) -> dict[str, Any]:
        kind = torch.float64 if self.kind == np.float64 else torch.float32
        saved = {"params": self.layout.flatten_model(self.model).to(kind)}
        if self.buffers.names:
            saved["buffers"] = self.buffers.flatten_model(self.model).to(kind)
        if self.with_moments:
            moments = second_moment(self.optimizer, self.model, self.layout)
            saved["optimizer_state"] = {"second_moment": moments.to(kind)}
        return saved


def refuse_sharded(model: torch.nn.Module) -> None:
    """Raise ValueError where this process holds only a part of some parameter."""
    for name, p in model.named_parameters():
        if hasattr(p, "full_tensor") or hasattr(p, "ds_id") or type(p).__name__ == "FlatParameter":
            raise ValueError(
                f"{name} is sharded over processes (FSDP or DeepSpeed), so that no process holds θ; "
                "save checkpoints instead, and read them with landscape.read_state_dicts"
            )


def _uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    return getattr(model, "_orig_mod", model)
