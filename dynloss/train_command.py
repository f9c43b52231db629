"""``python -m dynloss train``: the settings of `dynloss.train` as options, and a line that says where the run is."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dynloss.settings import TrainingSettings
from landscape.command_line import interrupted_status


@dataclass(frozen=True)
class TrainCommand:
    """Train a network with one hidden layer on the spiral task, and record the run in a file.

    An interrupted run (Ctrl-C, SIGTERM, a full disk, or killed) goes on with --resume.
    """

    record: Annotated[Path, tyro.conf.Positional]
    """The run file to write."""
    loss: str = "dynamical_cross_entropy"
    """cross_entropy, squared_error, dynamical_cross_entropy or dynamical_squared_error."""
    weighting: str = "sample"
    """Whether class weights of a squared error are of each sample or of each output component."""
    schedule: str = "triangle"
    """How the weights of a dynamical loss oscillate: triangle, sine or square."""
    amplitude: float = 70.0
    """Largest raw class weight A of a dynamical loss; 1 is the static loss."""
    period: int = 5000
    """Steps T during which a dynamical loss emphasises one class."""
    order: str = "cyclic"
    """Order in which it emphasises the classes: cyclic or random."""
    static_from: int | None = None
    """Step from which on a dynamical loss is static."""
    width: int = 100
    """Hidden units of the network."""
    n_per_class: int = 100
    """Points on each spiral arm, of the training and of the validation set."""
    n_classes: int = 3
    """Spiral arms."""
    model_seed: int = 0
    """Seed of the initial parameters."""
    data_seed: int = 0
    """Seed of the training set; that of the validation set is one more."""
    overwrite: bool = False
    """Replace the file if it exists."""
    resume: bool = False
    """Go on with the interrupted run in the file."""
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)


def main(argv: Sequence[str]) -> int:
    """Train as `argv` says; returns 0, 1 where training diverged, 130 or 143 where it was interrupted."""
    try:
        command = tyro.cli(TrainCommand, args=list(argv), prog="python -m dynloss train")
    except SystemExit as stop:  # tyro has printed its help, or what is wrong with the arguments
        return int(stop.code or 0)
    return run(command)


def run(command: TrainCommand) -> int:
    """Train and record what `command` describes."""
    from dynloss import mlp, spiral, train  # torch takes a second to load: only after the arguments were read
    from dynloss.losses import named_loss

    options = ("weighting", "schedule", "amplitude", "period", "order", "static_from")
    loss = named_loss(command.loss, command.n_classes, **{name: getattr(command, name) for name in options})
    data, validation = (
        spiral(command.n_per_class, command.n_classes, seed=command.data_seed + offset) for offset in range(2)
    )
    model = mlp(2, command.width, command.n_classes, seed=command.model_seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train(
                model,
                loss,
                data,
                validation=validation,
                record=command.record,
                overwrite=command.overwrite,
                resume=command.resume,
                **asdict(command.training),
            )
        except KeyboardInterrupt as stop:
            notes = "".join(f" ({note})" for note in getattr(stop, "__notes__", ()))
            if not command.record.exists():
                raise  # before anything was recorded
            print(f"dynloss: interrupted; {command.record} goes on with --resume{notes}", file=sys.stderr)
            return interrupted_status(stop)
        except FileExistsError:
            raise FileExistsError(
                f"{command.record} exists; --overwrite replaces it, --resume goes on with it"
            ) from None
    for warning in caught:
        print(f"dynloss: {warning.message}", file=sys.stderr)
    from landscape import open_run

    with open_run(command.record) as recorded:
        print(recorded)
        print(f"python -m landscape inspect {command.record} says more")
        return 0 if recorded.status == "complete" else 1
