"""A process that reads suspicious files, so that a crash, a hang or endless memory of it is seen and survived.

As a script it is that process: requests on its standard input, answers on its standard output, one JSON line each.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from memory import forget_peak, peak_bytes, resident_bytes

TIME_LIMIT = 10.0
"""Seconds for a file; as many more as other programs keep the processors busy."""

MEMORY_LIMIT = 2 * 2**30
"""Bytes of address space beyond what the process has when it has loaded everything."""

UNCLEAR = "unclear message"
FAILURES = (
    "crash",
    "hang",
    "other exception",
    "wrong number",
    UNCLEAR,
    "verify broke",
    "verify silent",
    "unchecked broke",
)


class Reader:
    """Handle on such a process, which is started again where a file ended it; use it as a context manager.

    Parameters
    ----------
    sound : Path
        A sound file, which it reads first.
    compare : bool
        Whether other files are damaged copies of that one, and what is read of them is compared with it.
    """

    def __init__(self, sound: Path, *, compare: bool = True):
        self.sound, self.compare = sound, compare
        self._process: subprocess.Popen | None = None
        self.slowest = 0.0
        self.last_bytes = self.peak_bytes = 0

    def read(self, path: Path) -> tuple[str, str]:
        """Outcome of reading `path`, "equal", "refused …" or one of FAILURES, and details."""
        if self._process is None:
            self._start()
        began = time.monotonic()
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        limit = TIME_LIMIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        answer = self._answer(limit)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if answer is None:
            self._process.kill()
            self._end()
            return "hang", f"no answer within {limit:.1f} s"
        if not answer:
            code = self._end()
            return "crash", signal.strsignal(-code) if code < 0 else f"exit status {code}"
        found = json.loads(answer)
        self.last_bytes = found["bytes"]
        self.peak_bytes = max(self.peak_bytes, self.last_bytes)
        return found["outcome"], found["detail"]

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, __file__, str(self.sound), *(["compare"] if self.compare else [])]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._answer(120) != b"ready\n":
            raise RuntimeError(f"the reading process did not start: exit status {self._end()}")

    def _answer(self, seconds: float) -> bytes | None:
        """The next line; empty where the process ended, None where it said nothing in time."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _end(self) -> int:
        with self._process as process:
            process.stdin.close()
        self._process = None
        return process.returncode

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception) -> None:
        if self._process is not None:
            self._end()


def judge(path: Path, pristine, states) -> tuple[str, str]:
    """Outcome of reading all of `path`, of `verify`, and of reading what is damaged without checks."""
    from contents import contents, differences, errors

    from landscape import RunFormatError, verify

    try:
        found = contents(path)
    except Exception:
        return "other exception", _last_lines()
    older = False
    if pristine is not None:
        saved = {place: found[place] for place in found if place.split("/")[0] == "state"}
        older = saved in states and any(saved[place] != pristine.get(place) for place in saved)
        if older:  # one slot is damaged, and the other one gives the state before
            found = {place: value for place, value in found.items() if place not in saved}
            found |= {place: value for place, value in pristine.items() if place.split("/")[0] == "state"}
        wrong = differences(found, pristine)
        if wrong:
            return "wrong number", "; ".join(wrong)
    lost = errors(found)
    for message in lost.values():
        if "\n" in message or path.name not in message or len(message) > 1000:
            return UNCLEAR, message[:1000]
    try:
        report = verify(path, n_samples=0, progress=False)
        sound = not report.damaged
        if not sound:
            str(report)
    except RunFormatError:
        sound = False
    except Exception:
        return "verify broke", _last_lines()
    if lost or not sound:
        try:
            contents(path, check=False)
        except Exception:
            return "unchecked broke", _last_lines()
    if sound and (lost or (older and found["status"] != "'running'")):
        return "verify silent", "; ".join(f"{place}: {message}" for place, message in lost.items()) or "an older state"
    detail = "; ".join(lost.values())
    if lost:
        return ("refused at open" if "file" in lost else "refused in part"), detail
    if older:
        return "equal, state before", detail
    return ("equal" if sound else "equal, verify says damaged"), detail


def main() -> None:
    """Answer requests until standard input ends; files outside never matter: outcomes are about single files."""
    import warnings

    warnings.simplefilter("ignore")
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing else may stand among the answers
    from contents import contents, states

    from landscape import verify

    sound = Path(sys.argv[1])
    pristine, saved = contents(sound), states(sound)
    verify(sound, n_samples=0, progress=False)  # now all that is needed is loaded
    if "compare" not in sys.argv:
        pristine = None
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT, resource.RLIM_INFINITY))
    answers.write(b"ready\n")
    for line in sys.stdin:
        before = resident_bytes()
        forget_peak()
        outcome, detail = judge(Path(line.rstrip("\n")), pristine, saved)
        answer = {"outcome": outcome, "detail": detail, "bytes": peak_bytes() - before}
        answers.write(json.dumps(answer).encode() + b"\n")


def _last_lines() -> str:
    text = traceback.format_exc().splitlines()
    places = [line.strip() for line in text if line.startswith("  File ")]
    return " ".join([text[-1][:500], "at", *(place.split("/")[-1] for place in places[-3:])])


if __name__ == "__main__":
    main()
