"""The command line: ``python -m landscape COMMAND …``; see ``python -m landscape --help``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "inspect": ("landscape.describe:main", "say what a run file or a Dataset file holds"),
}
"""Command -> the function that takes its arguments, as "module:function", and what it does.

A function takes the list of arguments after the command and returns the exit status or None. Its module is imported
only when the command is called, so that help texts answer at once. Bad input is raised as ValueError, KeyError or
OSError with one clear line.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 for bad input, which gets one line on stderr and no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
    module, function = COMMANDS[name][0].split(":")
    try:
        return getattr(importlib.import_module(module), function)(rest) or 0
    except BrokenPipeError:  # `… | head` has seen enough; nothing more must be written at exit
        sys.stdout = None
        return 0
    except KeyError as error:
        return _fail(error.args[0] if error.args else repr(error))
    except (ValueError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: python -m landscape COMMAND …", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m landscape COMMAND --help says more about each."])


def _fail(message: object) -> int:
    print(f"landscape: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
