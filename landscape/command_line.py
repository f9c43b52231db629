"""What the command lines of this project share: a table of commands, help that answers at once, one line for errors."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from landscape.termination import Terminated, orderly_termination

Commands = Mapping[str, tuple[str | Callable, str]]
"""Command → (the function that takes its arguments, or "module:function"; what it does)."""


class Parser(argparse.ArgumentParser):
    """Parses arguments; what is wrong with them is a ValueError, of one line."""

    def error(self, message: str):
        """Raise what `argparse` found wrong."""
        raise ValueError(f"{message}; {self.prog} --help says more")


def run_command(program: str, commands: Commands, argv: Sequence[str] | None = None) -> int:
    """Run one of `commands`; returns the exit status: 2 for bad input, with one line on stderr and no traceback.

    Ctrl-C ends it with 130, SIGTERM with 143 and SIGHUP with 129, after everything was closed in order.

    Parameters
    ----------
    program : str
        The package: ``python -m program COMMAND …``.
    commands : mapping
        Command → (the function that takes its arguments, as "module:function" or itself; what it does). A function
        takes the list of arguments after the command and returns the exit status or None; bad input is raised as
        ValueError, KeyError or OSError with one clear line. A module is imported only when the command is called.
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program, commands))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in commands:
        return _fail(program, f"there is no command {name!r}; choose from {', '.join(commands)}")
    function = commands[name][0]
    try:
        if isinstance(function, str):
            module, function = function.split(":")
            function = getattr(importlib.import_module(module), function)
        with orderly_termination():
            return function(rest) or 0
    except SystemExit as stop:  # argparse has printed its help
        return int(stop.code or 0)
    except BrokenPipeError:  # `… | head` has seen enough; nothing more must be written at exit
        sys.stdout = None
        return 0
    except KeyError as error:
        return _fail(program, error.args[0] if error.args else repr(error))
    except (ValueError, OSError) as error:
        return _fail(program, error)
    except KeyboardInterrupt as stop:
        return interrupted_status(stop)


def interrupted_status(stop: KeyboardInterrupt) -> int:
    """Exit status of a process that `stop` ended, as shells have it: 128 and the number of the signal."""
    return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


def _help(program: str, commands: Commands) -> str:
    width = max(map(len, commands))
    lines = [f"usage: python -m {program} COMMAND …", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, (_, text) in commands.items()]
    return "\n".join([*lines, "", f"python -m {program} COMMAND --help says more about each."])


def _fail(program: str, message: object) -> int:
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
