"""What happens around each script of the gallery: the project's style, progress, warnings, and no way out."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from viz.gallery_plotly import use_site_script
from viz.style import RC

_state = {}  # of the script that runs: the hooks of sphinx-gallery have no other place for it


def announce(names: Sequence[str]) -> None:
    """Tell this process and those that it starts which scripts will run, so that each can say how far one is."""
    os.environ["GALLERY_SCRIPTS"] = " ".join(names)


def around_script(gallery_conf: dict, path: str | None, when: str) -> None:
    """Before a script: the project's style and warnings to the terminal. After it: its time."""
    if path is None:
        return
    import matplotlib as mpl

    names, name = os.environ["GALLERY_SCRIPTS"].split(), Path(path).stem
    said = f"[{names.index(name) + 1}/{len(names)}] {name} …"
    alone = not gallery_conf["parallel"]  # beside others, a script says its line as a whole, at its end
    if when == "before":
        mpl.use("agg")
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"savefig.dpi": 140})
        use_site_script()
        if alone:
            print(said, end=" ", flush=True)
        _state["started"], _state["patched"] = time.perf_counter(), (warnings.formatwarning, sys.exit)
        warnings.formatwarning, sys.exit = _on_terminal_too(warnings.formatwarning, name), _no_exit
    else:
        warnings.formatwarning, sys.exit = _state.pop("patched")
        seconds = f"{time.perf_counter() - _state['started']:.1f} s\n"
        sys.stdout.write(seconds if alone else f"{said} {seconds}")
        sys.stdout.flush()


def _no_exit(status=None):
    """Fail the script: sphinx-gallery would let it end the whole build."""
    raise RuntimeError(f"the script called sys.exit({status!r})")


def _on_terminal_too(form: Callable, name: str) -> Callable:
    """Print each warning that is formatted: sphinx-gallery puts them on the script's page only."""
    terminal = sys.stderr

    def both(message, category, filename, lineno, line=None):
        text = form(message, category, Path(filename).name, lineno, line)
        print(f"\n    {name}: {text.splitlines()[0]}", file=terminal, flush=True)
        return text

    return both
