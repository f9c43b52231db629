"""The command line: ``python -m dynloss COMMAND …``; see ``python -m dynloss --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from landscape.command_line import run_command

COMMANDS = {
    "train": ("dynloss.train_command:main", "train a network on the spiral task and record the run"),
    "sweep": ("dynloss.sweep_command:main", "train a network for every combination of settings, on a cluster"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command("dynloss", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
