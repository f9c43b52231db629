"""A command that runs an analysis: its arguments, the file it reads, the file it writes, and what it says."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import landscape
from landscape.analysis_inputs import Inputs, Steps, open_inputs
from landscape.command_line import Parser
from landscape.state_dict_names import is_pattern


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _modes(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be modes from 0 on, separated by commas")
    return [int(part) for part in text.split(",")]


def _rises(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers separated by commas") from None


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {
        "type": Steps,
        "help": "steps to analyse: 100,200 or START:STOP:STRIDE, both ends included; default: all",
    },
    "step": {"type": int, "help": "the checkpoint to begin at; default: the last, of a replay --n-steps before it"},
    "at": {
        "type": Steps,
        "metavar": "STEPS",
        "help": "steps t of the loss F(·, t), as START:STOP:STRIDE; they need not be saved",
    },
    "k": {"type": _count, "help": "modes: eigenpairs of the largest eigenvalues"},
    "tol": {"type": float, "help": "largest relative residual ‖Hv − λv‖/|λ| of an eigenpair"},
    "eigs": {"metavar": "FILE", "help": "eigenpairs from this file; default: those in the run, else computed"},
    "modes": {"type": _modes, "help": "modes, 0 for the largest eigenvalue, as 0,1"},
    "vector": {"choices": ("gradient", "update", "displacement"), "help": "what to decompose"},
    "rise": {"type": _rises, "help": "rises above the floor of the valley, in units of the loss, as 0.05,0.1"},
    "half_width": {"type": float, "help": "how far to go to each side, in parameter distance ‖Δθ‖"},
    "signal": {"metavar": "NAME", "help": "which variable of the history"},
    "window": {"type": int, "help": "length of the sliding window, in steps"},
    "rtol": {"type": float, "help": "tolerance of a period, relative to the signal's spread"},
    "n_vectors": {"type": int, "help": "random start vectors at each step"},
    "n_lanczos": {"type": int, "help": "Lanczos steps from each, a Hessian-vector product each"},
    "seed": {"type": int, "help": "seed of random vectors"},
    "directions": {"choices": ("eigenvectors", "random", "pca"), "help": "along what"},
    "normalisation": {"choices": ("filter", "layer", "none"), "help": "of random directions"},
    "line": {"action": "store_true", "help": "a line along the first direction instead of a plane"},
    "points": {"type": int, "help": "points along each axis; an odd number puts one at the centre"},
    "terms": {"action": "store_true", "help": "keep the classes' own losses, from which any phase can be made"},
    "quantities": {"type": _words, "help": "what else at each point: accuracy,gradient_norm,eigenvalue"},
    "n_transient": {"type": int, "help": "updates of the frozen map that are dropped"},
    "n_keep": {"type": int, "help": "updates of the frozen map that are kept"},
    "n_steps": {"type": int, "help": "updates to replay from the checkpoint"},
    "learning_rate": {"type": float, "help": "η; default: that of the run"},
}
"""Each option of any command: its argparse settings; its default stands with the command."""


@dataclass(frozen=True)
class Analysis:
    """A command: reads FILE, computes, writes a Dataset file beside it and says what was found.

    Attributes
    ----------
    name, summary : str
        The command and what it does.
    options : mapping
        Names in `OPTIONS` → default.
    compute : callable
        (inputs, options, the file to write) → the Dataset.
    say : callable
        The Dataset → a line on what was found.
    streams : bool
        Whether `compute` writes the file itself.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    compute: Callable
    say: Callable
    streams: bool = False

    def __call__(self, argv: Sequence[str]) -> int:
        """Run the command with the arguments `argv`."""
        parser = self.parser()
        options = parser.parse_args(argv)
        if (options.file is None) == (options.checkpoints is None):
            parser.error("give one FILE, or --checkpoints")
        options.file = options.file or options.checkpoints
        out = _output(options, self.name)
        with warnings.catch_warnings(record=True) as caught, open_inputs(options.file, options.objective) as inputs:
            warnings.simplefilter("always")
            result = self._computed(inputs, options, out)
            if not self.streams:
                landscape.save_dataset(result, out, overwrite=options.overwrite)
            lines = [self.say(result), result.attrs.get("eigenpairs") and f"eigenpairs {result.attrs['eigenpairs']}"]
            result.close()
        for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
            print(f"landscape: {text}", file=sys.stderr)
        print("\n".join([*filter(None, lines), f"written to {out}; python -m landscape inspect {out} says more"]))
        return 0

    def _computed(self, inputs: Inputs, options: argparse.Namespace, out: Path):
        try:
            return self.compute(inputs, options, out)
        except KeyboardInterrupt:
            if self.streams:
                print("landscape: interrupted; the same command goes on where it stopped", file=sys.stderr)
            raise

    def parser(self) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = Parser(
            prog=f"python -m landscape {self.name}", description=f"{self.summary[0].upper()}{self.summary[1:]}."
        )
        parser.add_argument(
            "file",
            nargs="?",
            metavar="FILE",
            help="a run file; a Dataset file with params (step, param); or checkpoints of any model, with --objective: "
            "a file, a folder, or a pattern in quotes",
        )
        parser.add_argument("--checkpoints", metavar="PATTERN", help="the same, for those who like names better")
        for name, default in self.options.items():
            settings = dict(OPTIONS[name])
            if settings.get("action") != "store_true":
                settings.setdefault("metavar", None if "choices" in settings else name.upper())
            if default is not None and default is not False and default != ():
                shown = ",".join(map(str, default)) if isinstance(default, list) else f"{default}"
                settings["help"] += f" ({shown})"
            parser.add_argument(f"--{name.replace('_', '-')}", default=default, **settings)
        parser.add_argument(
            "--objective", metavar="FILE.py:FUNCTION", help="the loss: a function of the run, of the checkpoints in a "
            "Dataset file, or of the files by step, that returns a landscape.Objective; runs your file. Default: by "
            "the run's producer"
        )  # fmt: skip
        parser.add_argument(
            "--out", metavar="FILE", help=f"where to write; default: FILE with .{self.name}.h5 at its end"
        )
        parser.add_argument("--overwrite", action="store_true", help="replace the result if it exists")
        return parser


def _output(options: argparse.Namespace, name: str) -> Path:
    """The file to write, refused before anything is computed where it must not be."""
    source = Path(options.file)
    stem = "checkpoints" if is_pattern(source) else source.stem
    out = source.with_name(f"{stem}.{name}.h5") if options.out is None else Path(options.out)
    read = [source, *(Path(file) for file in (getattr(options, "eigs", None),) if file)]
    if out.resolve() in [path.resolve() for path in read]:
        raise ValueError(f"{out} is read by this command; give another --out")
    if out.exists():
        if not options.overwrite:
            raise FileExistsError(f"{out} exists; --overwrite replaces it, --out FILE writes elsewhere")
        from landscape.run import is_run_file

        if is_run_file(out):
            raise ValueError(f"{out} is a run file, which is never replaced; give another --out")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} does not exist; create it first")
    return out
