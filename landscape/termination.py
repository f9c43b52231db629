"""A process asked to end (SIGTERM, or a closed terminal) ends in order: as at Ctrl-C, `finally` and `with` run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """The process was asked to end by the signal `number`; whoever cleans up at Ctrl-C cleans up now too."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def orderly_termination() -> Iterator[None]:
    """While inside, SIGTERM and SIGHUP raise `Terminated` in the main thread, once; afterwards all is as before.

    Signals that somebody else handles, or that are ignored, as SIGHUP is under nohup, stay as they are; so does
    everything in other threads than the main one, which cannot handle signals.

    Examples
    --------
    >>> import os
    >>> with orderly_termination():
    ...     try:
    ...         os.kill(os.getpid(), signal.SIGTERM)
    ...     except Terminated as stop:
    ...         print(stop)
    SIGTERM
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if in_main_thread and signal.getsignal(number) is signal.SIG_DFL]
    raised = False

    def end(number, frame):
        nonlocal raised
        if not raised:  # a second one must not disturb the cleaning up
            raised = True
            raise Terminated(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
