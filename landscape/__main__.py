"""The command line: ``python -m landscape COMMAND …``; see ``python -m landscape --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from landscape.analysis_commands import ANALYSES
from landscape.command_line import run_command

COMMANDS = {
    "inspect": ("landscape.describe:main", "say what a run file, a Dataset file or checkpoints of others hold"),
    "convert": ("landscape.convert:main", "write checkpoints of any model as one run file"),
    "verify": ("landscape.verification:main", "check run files: what is damaged, and what is still readable"),
    **{name: (analysis, analysis.summary) for name, analysis in ANALYSES.items()},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command("landscape", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
