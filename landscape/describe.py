"""What a run file or a Dataset file holds, as text: ``python -m landscape inspect FILE``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from landscape.describe_rows import row_text, spans
from landscape.state_dict_names import is_of_state_dicts

if TYPE_CHECKING:
    import xarray as xr

    from landscape.run import Run

LARGEST_SUMMARY = 2**24
"""Entries up to which a variable is read to tell its range."""


def main(argv: list[str]) -> None:
    """The command `inspect`."""
    parser = argparse.ArgumentParser(
        prog="python -m landscape inspect",
        description="Say what a run file, a Dataset file or checkpoints of others hold; nothing in them is run.",
    )
    parser.add_argument(
        "file",
        nargs="+",
        help="a run file; a file that save_dataset wrote; or checkpoints: files (.pt, .ckpt, .safetensors, …), a "
        "folder or a pattern",
    )
    parser.add_argument(
        "--objective",
        metavar="FILE.py:FUNCTION",
        help="of checkpoints: say what would be loaded for the landscape.Objective that this function of the files by "
        "step returns",
    )
    parser.add_argument("--step", type=int, metavar="N", help="say what a run recorded at this step")
    parser.add_argument("--watch", action="store_true", help="follow a run until it ends or Ctrl-C")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (1)")
    options = parser.parse_args(argv)
    if is_of_state_dicts(options.file):
        if options.watch or options.step is not None:
            raise ValueError("--watch and --step are for run files")
        from landscape.describe_state_dicts import describe_state_dicts  # loads torch

        print(describe_state_dicts(options.file, options.objective))
    elif options.objective:
        raise ValueError("--objective is for checkpoints of others; a run file says itself what it holds")
    elif options.watch:
        from landscape.watch import watch

        if options.step is not None:
            raise ValueError("give either --watch or --step")
        watch(options.file[0], options.interval)
    else:
        print(describe(options.file[0], options.step))


def describe(path: str | os.PathLike, step: int | None = None) -> str:
    """Text that says what the file `path` holds, whether it is a run or a Dataset; or what a run holds of one step.

    Raises
    ------
    KeyError
        If the step was not recorded.
    FileNotFoundError
        If there is no such file.
    RunFormatError
        If it is neither, or damaged.
    """
    from landscape.hdf5 import load_dataset
    from landscape.run import Run, is_run_file

    if is_run_file(path):
        with Run(path) as run:
            return describe_run(run) if step is None else describe_step(run, step)
    if step is not None:
        raise ValueError(f"{path} is not a run file; --step is for runs")
    dataset = load_dataset(path, lazy=True)
    try:
        return "\n".join([f"{path}: Dataset, {_size(path)}", *_dataset(dataset)])
    finally:
        dataset.close()


def describe_run(run: Run) -> str:
    """Text that says what an open run holds."""
    from landscape.attributes import LAYOUTS  # loads h5py, which help does not need

    versions = ", ".join(f"{name} {version}" for name, version in run.software.items() if name != "platform")
    lines = [
        f"{run.path}: run, {run.status}, {_size(run.path)}",
        row_text("created", f"{run.created} by {run.producer or 'no named producer'}"),
        row_text("software", versions),
    ]
    checkpoints, history, eigenpairs = run.checkpoints, run.history, run.eigenpairs
    trained = {name: value for name, value in checkpoints.attrs.items() if name not in LAYOUTS}
    lines.append(
        row_text("trained", ", ".join(f"{name} {value}" for name, value in trained.items()) or "nothing is said")
    )
    lines += [
        row_text("config" if not i else "", f"{name}: {_line(value)}")
        for i, (name, value) in enumerate(run.config.items())
    ]

    params = checkpoints["params"]
    lines.append(row_text("layout", f"θ has {params.sizes['param']} entries"))
    tensors = run.tensors
    width = max(map(len, tensors), default=0)
    lines += [row_text("", f"  {name:<{width}}  {shape}") for name, shape in list(tensors.items())[:40]]
    if len(tensors) > 40:
        lines.append(row_text("", f"  … and {len(tensors) - 40} more tensors"))

    if "buffers" in checkpoints:
        lines.append(row_text("buffers", f"{checkpoints.sizes['buffer']} numbers, such as statistics of batch norms"))
    lines.append(row_text("history", spans(history["step"].values)))
    lines += [row_text("", line) for line in _variables(history)]
    lines.append(row_text("checkpoints", f"{spans(checkpoints['step'].values)}; {params.dtype}"))
    if eigenpairs is not None:
        lines.append(row_text("eigenpairs", f"{spans(eigenpairs['step'].values)}; {eigenpairs.sizes['mode']} modes"))
        lines += [row_text("", line) for line in _variables(eigenpairs.drop_vars("eigenvector"))]
    for i, (name, data) in enumerate(run.data.items()):
        shapes = ", ".join(f"{key} {dict(value.sizes)} {value.dtype}" for key, value in data.items())
        lines.append(row_text("data" if not i else "", f"{name}: {shapes}"))
    return "\n".join(lines)


def describe_step(run: Run, step: int) -> str:
    """Text that says what an open run holds of one step: scalars, and which checkpoint and eigenpairs."""
    from landscape.run import at_step

    row = at_step(run.history, step)
    width = max((len(str(name)) for name in row.data_vars), default=0)
    lines = [f"{run.path}: step {step}"]
    for i, (name, value) in enumerate(row.data_vars.items()):
        numbers = ", ".join(f"{number:.9g}" for number in value.values.ravel())
        lines.append(row_text("history" if not i else "", f"  {name:<{width}}  {numbers}"))
    for name, table in (("checkpoint", run.checkpoints), ("eigenpairs", run.eigenpairs)):
        if table is None:
            continue
        try:
            found = at_step(table, step)
        except KeyError as error:
            lines.append(row_text(name, error.args[0]))
            continue
        if name == "eigenpairs":
            pairs = zip(found["eigenvalue"].values, found["residual"].values, strict=True)
            text = ", ".join(f"{value:.9g} (residual {residual:.1e})" for value, residual in pairs)
        else:
            text = f"saved, ‖θ‖ = {float((found['params'].values ** 2).sum() ** 0.5):.9g}"
        lines.append(row_text(name, text))
    return "\n".join(lines)


def _dataset(dataset: xr.Dataset) -> list[str]:
    lines = [row_text("dims", ", ".join(f"{dim} {size}" for dim, size in dataset.sizes.items()) or "none")]
    if "step" in dataset.dims and "step" in dataset.coords:
        lines.append(row_text("steps", spans(dataset["step"].values)))
    for title, names in (("coordinates", dataset.coords), ("variables", dataset.data_vars)):
        found = _variables(dataset[list(names)].reset_coords() if title == "coordinates" else dataset, list(names))
        lines += [row_text(title if not i else "", line) for i, line in enumerate(found)]
    lines += [
        row_text("attrs" if not i else "", f"{key}: {_line(value)}")
        for i, (key, value) in enumerate(dataset.attrs.items())
    ]
    return lines


def _variables(dataset: xr.Dataset, names: list[str] | None = None) -> list[str]:
    names = list(dataset.data_vars) if names is None else names
    width = max((len(str(name)) for name in names), default=0)
    return [f"  {name:<{width}}  {_dims(dataset[name])}{_range(dataset[name])}" for name in names]


def _dims(variable: xr.DataArray) -> str:
    return f"({', '.join(map(str, variable.dims))}) {variable.dtype}"


def _range(variable: xr.DataArray) -> str:
    """Range, last value and number of values that are not finite."""
    import numpy as np

    if not variable.size or variable.size > LARGEST_SUMMARY:
        return ""
    values = variable.values
    if values.dtype == bool:
        return f"  true in {int(values.sum())} of {values.size}"
    if values.dtype.kind not in "iuf":
        return f"  {', '.join(map(str, values.flat[:4]))}{', …' if values.size > 4 else ''}"
    finite = values[np.isfinite(values)]
    text = f"  {finite.min():.6g} … {finite.max():.6g}" if finite.size else "  nothing finite"
    lost = values.size - finite.size
    return text + (f", {lost} not finite" if lost and finite.size else "")


def _line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 200 else f"{text[:200]}…"


def _size(path: str | os.PathLike) -> str:
    size = float(os.path.getsize(path))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    return ""
