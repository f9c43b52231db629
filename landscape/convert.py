"""``python -m landscape convert``: checkpoints that others saved, as one run file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from landscape.command_line import Parser


def main(argv: Sequence[str]) -> int:
    """The command `convert`."""
    parser = Parser(
        prog="python -m landscape convert",
        description="Write checkpoints of any model as one run file, which opens at once and is read by row or column.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the run file to write")
    parser.add_argument("source", nargs="+", metavar="PATH", help="files, a folder, or a pattern in quotes")
    parser.add_argument(
        "--objective",
        metavar="FILE.py:FUNCTION",
        help="function of the files by step that returns a landscape.Objective, whose parameters are written; default: "
        "all floating-point tensors; statistics of batch norms are written as buffers",
    )
    parser.add_argument("--weights", default="raw", help="raw or ema, where files hold averaged weights too (raw)")
    parser.add_argument("--optimizer", help="gd, sgd, momentum, rmsprop or adam: kept in the attrs")
    parser.add_argument("--learning-rate", type=float, metavar="η", help="kept in the attrs")
    parser.add_argument("--overwrite", action="store_true", help="replace the run file if it exists")
    options = parser.parse_args(list(argv))
    attrs = {"optimizer": options.optimizer, "learning_rate": options.learning_rate}
    source = options.source[0] if len(options.source) == 1 else options.source
    n_rows = convert(
        options.out,
        source,
        objective=options.objective,
        weights=options.weights,
        attrs={name: value for name, value in attrs.items() if value is not None},
        overwrite=options.overwrite,
    )
    print(f"{n_rows} checkpoints are in {options.out}; python -m landscape inspect {options.out} says more")
    return 0


def convert(
    out: Path, source, *, objective: str | None = None, weights: str = "raw", attrs=None, overwrite: bool = False
) -> int:
    """Write the checkpoints of `source` into the run file `out`; returns their number.

    Parameters
    ----------
    out : Path
        The file.
    source : path, sequence or mapping
        As for `landscape.read_state_dicts`.
    objective : str, optional
        ``FILE.py:function`` that says which tensors are parameters; by default all of floating-point numbers.
    weights : {"raw", "ema"}
        Which, where files hold averaged weights too.
    attrs : mapping, optional
        How they were trained: optimizer, learning_rate, …
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileExistsError
        If `out` exists and `overwrite` is False.
    FileNotFoundError, ValueError
        As `landscape.read_state_dicts`.
    """
    from tqdm import tqdm

    from landscape.analysis_inputs import objective_of
    from landscape.params import ParamLayout
    from landscape.run_writer import RunWriter
    from landscape.state_dict_files import read_tensors
    from landscape.state_dict_names import files_by_step
    from landscape.state_dicts import parameters_in, read_state_dicts

    paths = files_by_step(source)
    if objective is not None:
        layout = objective_of(objective, paths).layout
    else:
        layout = parameters_in(read_tensors(next(iter(paths.values())), weights))
    checkpoints = read_state_dicts(paths, layout, weights=weights)
    dtype = str(checkpoints.params.dtype)
    config = {"files": {str(step): str(path) for step, path in paths.items()}, "weights": weights}
    buffers = checkpoints.attrs.get("buffer_layout")
    layouts = {"layout": layout, "buffers": ParamLayout.from_json(buffers) if buffers else None}
    options = {"attrs": attrs, "config": config, "dtype": dtype, "overwrite": overwrite, "block_rows": 1}
    with RunWriter(out, **layouts, history=[], **options) as writer:
        for row, step in enumerate(tqdm(list(paths), desc="converting", unit="checkpoint", delay=1, disable=None)):
            held = checkpoints.buffers[row].values if buffers else None
            writer.append(step, checkpoints.params[row].values, buffers=held)
    return len(paths)
