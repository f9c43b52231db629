"""Every moment at which a recording process could die: each write is logged, and each prefix of the log is a file.

Run as a script, it tries them all and prints how many were right; a test tries a sample. For each
prefix, and for writes cut at a page border, the file must open, hold every committed row as it was appended, and
resume to the same end as an undisturbed run. With ``--twice``, the resuming writer dies too, at each of its writes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import summary

from landscape import ParamLayout, RunWriter, open_run

LAYOUT = ParamLayout(("w",), ((130,),))
BUFFERS = ParamLayout(("mean", "variance"), ((2,), (3,)))
N_STEPS = 200

SECOND_STRIDE = 17
"""Of a resuming writer, one in so many of its points is tried: there are some hundred for each point of the first."""


class WriteLog:
    """What HDF5 writes, in order, as (offset, bytes); a truncation is (size, None). Linux only.

    The entries for pwrite and ftruncate in the table through which libhdf5 calls the C library are pointed to
    functions of ours, which note the call and pass it on.

    With `path`, `before` holds that file as it was at the first of them: what else changes it is done by then.
    """

    def __init__(self, path: Path | None = None):
        self._path, self.before = path, b""
        self.events: list[tuple[int, bytes | None]] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._write_type = ctypes.CFUNCTYPE(
            ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        )
        self._truncate_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int64)
        self._real_write = self._write_type(("pwrite", self._libc))
        self._real_truncate = self._truncate_type(("ftruncate", self._libc))
        self._ours = {"pwrite": self._write_type(self._write), "ftruncate": self._truncate_type(self._truncate)}

    def __enter__(self) -> WriteLog:
        self._saved = []
        for name, slot in _imports(_hdf5_library()):
            function = self._ours.get(name.removesuffix("64"))
            if function is not None:
                self._saved.append((slot, ctypes.c_void_p.from_address(slot).value))
                _make_writable(self._libc, slot)
                ctypes.c_void_p.from_address(slot).value = ctypes.cast(function, ctypes.c_void_p).value
        if not self._saved:
            raise RuntimeError("libhdf5 calls no pwrite that could be logged")
        return self

    def __exit__(self, *exception) -> None:
        for slot, address in self._saved:
            ctypes.c_void_p.from_address(slot).value = address

    def _look(self):
        if self._path is not None and not self.events:
            self.before = self._path.read_bytes()

    def _write(self, descriptor, data, size, offset):
        self._look()
        self.events.append((offset, ctypes.string_at(data, size)))
        return self._real_write(descriptor, data, size, offset)

    def _truncate(self, descriptor, size):
        self._look()
        self.events.append((size, None))
        return self._real_truncate(descriptor, size)


def _hdf5_library() -> str:
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libhdf5" in line}
    return next(path for path in sorted(paths) if "_hl" not in path)


def _imports(library: str):
    """Names of the functions that a loaded library calls from others, and where their addresses stand (ELF, glibc)."""
    base, _, dynamic = (ctypes.c_uint64 * 3).from_address(ctypes.CDLL(library)._handle)
    tags, i = {}, 0
    while (tag := ctypes.c_uint64.from_address(dynamic + 16 * i).value) != 0:
        tags[tag] = ctypes.c_uint64.from_address(dynamic + 16 * i + 8).value
        i += 1
    names, symbols = tags[5], tags[6]
    for table, size in ((23, 2), (7, 8)):  # DT_JMPREL and DT_RELA
        for entry in range(tags.get(table, 0), tags.get(table, 0) + tags.get(size, 0), 24):
            offset, info = (ctypes.c_uint64 * 2).from_address(entry)
            if info >> 32:
                name = names + ctypes.c_uint32.from_address(symbols + 24 * (info >> 32)).value
                yield ctypes.string_at(name).decode(), base + offset


def _make_writable(libc, address: int) -> None:
    page = address - address % mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect failed")


def row(step: int) -> dict:
    """What is appended at `step`: θ, and the buffers of the model, at every third one."""
    saved = step % 3 == 0
    params = {"params": np.sin(np.arange(130) + step), "buffers": np.cos(np.arange(5) + step)} if saved else {}
    return {**params, "loss": np.nan if step % 7 == 0 else 1 / step, "class_weight": [step, 1, 2]}


def record(path: Path, n_steps: int = N_STEPS, marks: list | None = None, log: WriteLog | None = None) -> None:
    """Record, or go on recording, the run; `marks` notes (events so far, rows committed) after each commit."""
    options = {"history": {"loss": {}, "class_weight": {"class": 3}}, "block_rows": 8, "resume": True}
    options["buffers"] = BUFFERS
    with RunWriter(path, LAYOUT, **options, attrs={"optimizer": "gd"}, state={"counter": np.zeros(7)}) as writer:
        start = 0 if writer.state is None else int(writer.state.counter[0])
        assert writer.state is None or (writer.state.counter == start).all()
        commit = writer.commit

        def noted():
            commit()
            if marks is not None:
                # A writer killed between the tables leaves checkpoints to be recorded again.
                rows = min(writer._history.n_committed, 3 * writer._checkpoints.n_committed)
                marks.append((len(log.events), rows))

        writer.commit = noted
        noted()
        for step in range(start, n_steps):
            if step % 5 == 0:
                writer.save_state(step, {"counter": np.full(7, float(step))})
            writer.append(step, **row(step))


def check(path: Path, at_least: int) -> int:
    """Number of committed rows of the history, after every row of the file was found right."""
    with open_run(path) as run:
        steps = run.history.step.values
        assert len(steps) >= at_least, f"{len(steps)} rows where {at_least} had been committed"
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        rows = [row(step) for step in range(len(steps))]
        np.testing.assert_array_equal(run.history.loss, [r["loss"] for r in rows])
        np.testing.assert_array_equal(run.history.class_weight, np.reshape([r["class_weight"] for r in rows], (-1, 3)))
        saved = run.checkpoints.step.values
        np.testing.assert_array_equal(saved, np.arange(len(saved)) * 3)
        params = np.reshape([row(step)["params"] for step in saved.tolist()], (-1, 130))
        np.testing.assert_array_equal(run.checkpoints.params, params)
        buffers = np.reshape([row(step)["buffers"] for step in saved.tolist()], (-1, 5))
        np.testing.assert_array_equal(run.checkpoints.buffers, buffers)
        assert len(saved) >= (at_least + 2) // 3, "checkpoints are missing"
        assert run.state is None or (run.state.counter == run.state.counter[0]).all()
    return len(steps)


def images(events: list, begin: int, start: bytes = b""):
    """(number of events, content) of the file after each prefix of `events`, from `begin` on, and within writes."""
    image = bytearray(start)

    def put(offset: int, data: bytes) -> None:
        image.extend(bytes(max(0, offset + len(data) - len(image))))
        image[offset : offset + len(data)] = data

    for i, (offset, data) in enumerate(events):
        if i >= begin:
            yield i, bytes(image)
        if data is None:
            del image[offset:]
            image.extend(bytes(offset - len(image)))
            continue
        border = offset - offset % mmap.PAGESIZE + mmap.PAGESIZE
        if i >= begin and border < offset + len(data):  # a kill may cut a write where a page ends
            put(offset, data[: border - offset])
            yield i, bytes(image)
        put(offset, data)
    yield len(events), bytes(image)


def committed(marks: list, n_events: int) -> int:
    """Rows whose commit had returned after `n_events` writes."""
    return max((rows for mark, rows in marks if mark <= n_events), default=0)


def crash_points(folder: Path) -> tuple[list, list, int]:
    """Log of an undisturbed run in `folder`/whole.h5: events, marks and the events that came before its first row."""
    with WriteLog() as log:
        marks: list = []
        record(folder / "whole.h5", marks=marks, log=log)
    return log.events, marks, marks[0][0]


def try_point(path: Path, image: bytes, at_least: int, whole: Path, resume: bool) -> None:
    """The file `image` must open with its committed rows, and resume to the end of `whole`."""
    path.write_bytes(image)
    check(path, at_least)
    if not resume:
        return
    with open_run(path) as run:
        if run.status == "complete":
            return
    record(path)
    with open_run(path) as run, open_run(whole) as undisturbed:
        assert run.status == "complete"
        assert run.history.identical(undisturbed.history)
        assert run.checkpoints.identical(undisturbed.checkpoints)


def second_kills(folder: Path, events: list, marks: list, points: list, n: int) -> tuple[int, int]:
    """How many points of resuming writers were tried, which had died at `n` of the `points`, and how many failed."""
    n_tried = n_failed = 0
    for i, image in points[:: max(1, len(points) // n)]:
        path = folder / "first.h5"
        path.write_bytes(image)
        with open_run(path) as run:
            if run.status == "complete":
                continue
        again: list = []
        with WriteLog(path) as log:
            record(path, marks=again, log=log)
        for j, second in list(images(log.events, 0, log.before))[i % SECOND_STRIDE :: SECOND_STRIDE]:
            n_tried += 1
            at_least = max(committed(marks, i), committed(again, j))
            n_failed += _failed((i, j), folder, second, at_least, resume=True)
    return n_tried, n_failed


def main() -> int:
    """Try all points; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--twice", type=int, default=0, metavar="N", help="let the resuming writer die too, at N points"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="JSON file that takes the counts")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events, marks, begin = crash_points(folder)
        points = list(images(events, begin))
        n_failed = sum(_failed(i, folder, image, committed(marks, i), resume=True) for i, image in points)
        print(f"{len(points)} crash points within {len(events) - begin} writes: {len(points) - n_failed} right")
        n_second = n_second_failed = 0
        if options.twice:
            n_second, n_second_failed = second_kills(folder, events, marks, points, options.twice)
            print(f"{n_second} crash points of resumed writers: {n_second - n_second_failed} right")
    if options.table:
        counted = {"points": len(points), "failures": n_failed, "writes": len(events) - begin}
        counted |= {"points_of_resumed_writers": n_second, "failures_of_resumed_writers": n_second_failed}
        summary.write(options.table, "crash", {**counted, "seconds": round(time.monotonic() - start)})
    return int(bool(n_failed + n_second_failed))


def _failed(point, folder: Path, image: bytes, at_least: int, resume: bool) -> bool:
    try:
        try_point(folder / "point.h5", image, at_least, folder / "whole.h5", resume)
    except Exception as error:
        print(f"after writes {point}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            (folder / "point.h5").unlink()
    return False


if __name__ == "__main__":
    sys.exit(main())
