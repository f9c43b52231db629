"""What the commands of analyses read: checkpoints or a run, its objective, eigenpairs, and the steps asked for."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.state_dict_names import files_by_step, is_of_state_dicts

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.run import Run


class Steps:
    """Steps as written on the command line: ``9050``, ``100,200``, ``START:STOP`` or ``START:STOP:STRIDE``.

    Both ends belong to a range; START and STOP may be left out for the first and the last step recorded. A range
    without a stride holds the recorded steps in it, one with a stride each step that it names.

    >>> Steps("9000:9100:50,9105").named()
    [9000, 9050, 9100, 9105]
    """

    def __init__(self, text: str):
        self.text = text
        try:
            self.parts = [[int(end) if end else None for end in part.split(":")] for part in text.split(",")]
            good = all(1 <= len(part) <= 3 and (len(part) > 1 or part[0] is not None) for part in self.parts)
            good = good and all(len(part) < 3 or (part[2] or 0) > 0 for part in self.parts)
        except ValueError:
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r} is neither steps like 100,200 nor START:STOP:STRIDE")

    def among(self, recorded: np.ndarray) -> np.ndarray:
        """The steps meant, in increasing order, each of which must be among the `recorded` ones.

        Raises
        ------
        KeyError
            Naming a step that was not recorded, and the nearest that were.
        """
        import numpy as np

        chosen: set[int] = set()
        for part in self.parts:
            first, last = (part[0], part[1]) if len(part) > 1 else (part[0], part[0])
            first = int(recorded[0]) if first is None else first
            last = int(recorded[-1]) if last is None else last
            if len(part) == 2:
                inside = recorded[(recorded >= first) & (recorded <= last)]
                if not len(inside):
                    raise KeyError(f"no step in {first}:{last} was recorded; the nearest are {_near(recorded, first)}")
                chosen.update(inside.tolist())
            else:
                chosen.update(range(first, last + 1, part[2] if len(part) == 3 else 1))
        steps = np.array(sorted(chosen), dtype=np.int64)
        for step in steps[~np.isin(steps, recorded)][:1].tolist():
            raise KeyError(f"step {step} was not recorded; the nearest are {_near(recorded, step)}")
        if not len(steps):
            raise KeyError(f"there is no step in {self.text}")
        return steps

    def named(self) -> list[int]:
        """The steps meant, where no record is needed: ranges must name both ends and the stride."""
        chosen: list[int] = []
        for part in self.parts:
            if len(part) > 1 and (len(part) < 3 or None in part):
                raise ValueError(f"{self.text} must name both ends and the stride of a range, as 7500:10000:25")
            chosen += range(part[0], part[1] + 1, part[2]) if len(part) == 3 else part
        if not chosen:
            raise ValueError(f"there is no step in {self.text}")
        return chosen


def _near(recorded: np.ndarray, step: int) -> str:
    import numpy as np

    position = int(np.searchsorted(recorded, step))
    return ", ".join(map(str, recorded[max(0, position - 1) : position + 1]))


class Inputs:
    """A run file, or a Dataset file of checkpoints, as an analysis needs it.

    Attributes
    ----------
    path : Path
        The file.
    run : Run or None
        The open run, where it is one.
    table : xarray.Dataset or None
        What the file holds where it is a Dataset.
    """

    def __init__(self, path: Path, run: Run | None, table: xr.Dataset | None, objective: str | None):
        self.path, self.run, self.table, self._objective = path, run, table, objective
        self._files: list[xr.Dataset] = []

    @cached_property
    def objective(self):
        """F(θ, t), by the run's producer or by the user's own function."""
        checkpoints = self.checkpoints  # first, as without any there is nothing to evaluate
        if self._objective is not None:
            return objective_of(self._objective, checkpoints if self.run is None else self.run)
        if self.run is None:
            raise ValueError(
                f"{self.path} is a Dataset, no run: say what the loss is with --objective FILE.py:function"
            )
        from landscape.update_rule import installed_objective

        try:
            return installed_objective(self.run.producer)(self.run)
        except (LookupError, ValueError) as error:
            raise ValueError(f"{error.args[0]}; or say what the loss is, --objective FILE.py:function") from error

    @cached_property
    def checkpoints(self) -> xr.Dataset:
        """All of them: ``params`` (step, param)."""
        found = self.table if self.run is None else self.run.checkpoints
        if "params" not in found or "step" not in found.dims:
            raise ValueError(f"{self.path} holds no checkpoints, params (step, param)")
        if not found.sizes["step"]:
            raise ValueError(f"{self.path} holds no checkpoints yet")
        return found

    @property
    def history(self) -> xr.Dataset:
        """What was recorded at every step."""
        found = self.table if self.run is None else self.run.history
        if "step" not in found.dims or not found.sizes["step"]:
            raise ValueError(f"{self.path} holds no history (step)")
        return found

    def at(self, steps: Steps | None) -> xr.Dataset:
        """The checkpoints at `steps`, all by default."""
        return self.checkpoints if steps is None else _rows(self.checkpoints, steps, self.path)

    def one(self, step: int | None) -> xr.Dataset:
        """The checkpoint at `step`, the last one by default."""
        if step is None:
            return self.checkpoints.isel(step=-1)
        return _rows(self.checkpoints, Steps(str(step)), self.path).isel(step=0)

    def eigenpairs(
        self, steps: Steps | None, k: int | None, tol: float, file: str | None = None
    ) -> tuple[xr.Dataset, str]:
        """Eigenpairs at `steps`, all checkpoints by default, and where they come from.

        Those in `file`; else those recorded in the run, if it has them at all steps asked for and as many as `k`; else
        `k`, 2 by default, computed.
        """
        import landscape

        checkpoints = self.at(steps)  # first, so that a step without a checkpoint is named as such
        if file is not None:
            pairs = landscape.load_dataset(file, lazy=True)
            self._files.append(pairs)
            if not {"eigenvalue", "eigenvector"} <= set(pairs) or "step" not in pairs.dims:
                raise ValueError(
                    f"{file} holds no eigenpairs, eigenvalue (step, mode), eigenvector (step, mode, param)"
                )
            pairs, source = pairs if steps is None else _rows(pairs, steps, file), f"in {file}"
            if k is not None and k > pairs.sizes["mode"]:
                raise ValueError(f"{file} holds {pairs.sizes['mode']} modes, not {k}")
        else:
            pairs, source = self._recorded(steps, k), "recorded in the run"
            if pairs is None:
                k = 2 if k is None else k
                pairs = landscape.top_eigenpairs(self.objective, checkpoints, k=k, tol=tol)
                source = f"computed, k = {k}, tol = {tol:g}"
        return (pairs if k is None else pairs.isel(mode=slice(k))), source

    def _recorded(self, steps: Steps | None, k: int | None) -> xr.Dataset | None:
        pairs = None if self.run is None else self.run.eigenpairs
        if pairs is None or (k or 0) > pairs.sizes["mode"]:
            return None
        try:
            return pairs if steps is None else _rows(pairs, steps, self.path)
        except KeyError:
            return None

    def close(self) -> None:
        """Close all files."""
        for file in (self.run, self.table, *self._files):
            if file is not None:
                file.close()


class StateDictInputs(Inputs):
    """Checkpoints that others saved: a folder, a pattern or one of their files."""

    @cached_property
    def files(self) -> dict[int, Path]:
        """They by step."""
        return files_by_step(str(self.path))

    @cached_property
    def objective(self):
        """F(θ, t), by the user's own function, which is given the files by step."""
        if self._objective is None:
            raise ValueError(f"{self.path} holds no loss: say what it is with --objective FILE.py:function")
        return objective_of(self._objective, self.files)

    @cached_property
    def checkpoints(self) -> xr.Dataset:
        """All of them: ``params`` (step, param)."""
        import landscape

        return landscape.read_state_dicts(self.files, self.objective.layout)

    @property
    def history(self) -> xr.Dataset:
        """There is none."""
        raise ValueError(f"{self.path} holds no history (step), only checkpoints")


@contextlib.contextmanager
def open_inputs(path: str, objective: str | None = None) -> Iterator[Inputs]:
    """`Inputs` of the file `path`, with the objective of the user's function ``FILE.py:function`` where given."""
    from landscape.hdf5 import load_dataset
    from landscape.run import Run, is_run_file

    if is_of_state_dicts([path]):
        inputs = StateDictInputs(Path(path), None, None, objective)
    elif is_run_file(path):
        inputs = Inputs(Path(path), Run(path), None, objective)
    else:
        inputs = Inputs(Path(path), None, load_dataset(path, lazy=True), objective)
    try:
        yield inputs
    finally:
        inputs.close()


def _rows(dataset: xr.Dataset, steps: Steps, path) -> xr.Dataset:
    recorded = dataset["step"].values
    try:
        return dataset.sel(step=steps.among(recorded))
    except KeyError as error:
        raise KeyError(f"{path}: {error.args[0]}") from None


def objective_of(spec: str, argument):
    """What the function in the user's file answers; ``FILE.py:function``."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"--objective must be FILE.py:function, got {spec!r}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    answer = _guarded(path, _load(path, name), argument)
    if not (hasattr(answer, "losses") and hasattr(answer, "n_params")):
        raise ValueError(f"{spec} must return a landscape.Objective, got {type(answer).__name__}")
    return answer


def _load(path: Path, name: str) -> Callable:
    module_spec = importlib.util.spec_from_file_location(f"_objective_of_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # as for any import; dataclasses look there
    sys.path.insert(0, str(path.parent.resolve()))  # what stands beside the file, as when python runs it
    _guarded(path, module_spec.loader.exec_module, module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{path} has no function {name}")
    return getattr(module, name)


def _guarded(path: Path, function: Callable, argument):
    """`function(argument)`, with an error of the user's code as one line that says where it is."""
    try:
        return function(argument)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        lines = lines or [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
