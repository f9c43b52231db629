"""Files made to harm their reader: each is a clear RunFormatError, in bounded time and memory, and opens no other file.

They are read as fuzz.py reads its files: everything in them, in a process with a limit on memory, ten seconds each.
"""

import ctypes
import json
import os
import shutil
import sys
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader import FAILURES, Reader

from landscape import ParamLayout, RunWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by means of Linux")

LAYOUT = ParamLayout(("w", "b"), ((3,), ()))
N = 10


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "sound.h5"
    data = {"training": (np.linspace(0, 1, 10).reshape(5, 2), np.arange(5))}
    options = {"history": {"loss": {}, "class_weight": {"class": 3}}, "data": data, "config": {"a": 1}}
    with RunWriter(path, LAYOUT, **options, state={"theta": np.zeros(4)}) as writer:
        for step in range(N):
            writer.append(step, np.full(4, step / 7), loss=1 / (step + 1), class_weight=[1, 2, step])
        writer.save_state(N, {"theta": np.ones(4)})
    return path


@pytest.fixture(scope="module")
def process(sound):
    with Reader(sound, compare=False) as process:
        yield process


@pytest.fixture(scope="module")
def comparing(sound):
    with Reader(sound) as process:
        yield process


@pytest.fixture
def path(sound, tmp_path):
    return shutil.copy(sound, tmp_path / "hostile.h5")


def replaced(name, **create):
    """A change that puts another dataset in the place of one, with its attributes."""

    def change(file):
        attrs = dict(file[name].attrs)
        del file[name]
        dataset = file.create_dataset(name, **create)
        for key, value in attrs.items():
            dataset.attrs[key] = value

    return change


def retyped(name, dtype):
    return lambda file: replaced(name, shape=file[name].shape, maxshape=file[name].maxshape, dtype=dtype)(file)


def without(name):
    return lambda file: file.__delitem__(name)


def with_attr(name, attr, value):
    return lambda file: file[name].attrs.__setitem__(attr, value)


def without_attr(name, attr):
    return lambda file: file[name].attrs.__delitem__(attr)


def linked(name, link):
    def change(file):
        del file[name]
        file[name] = link(file) if callable(link) else link

    return change


def claiming(rows, *names):
    """Rows that were never written."""

    def change(file):
        for name in names:
            file[name].resize(rows, axis=0)

    return change


def bomb(name, chunk_rows, content):
    """A compressed chunk that unfolds to something else than it claims."""

    def change(file):
        dtype, shape = file[name].dtype, file[name].shape
        options = {"shape": shape, "maxshape": (None,), "chunks": (chunk_rows,), "compression": "gzip"}
        replaced(name, dtype=dtype, **options)(file)
        file[name].id.write_direct_chunk((0,), content())

    return change


def zeros(size):
    """`size` zeros, compressed."""
    deflate = zlib.compressobj(1)
    block = bytes(2**20)
    return b"".join(deflate.compress(block) for _ in range(size // 2**20)) + deflate.flush()


COMPOUND = np.dtype([("a", "f8"), ("b", "S3")])
ROWS = ("history/step", "history/loss", "history/class_weight", "history/checksum")
TRILLION = 10**12

CHANGES = {
    "no history": without("history"),
    "no checkpoints": without("checkpoints"),
    "no layout": without_attr("checkpoints", "layout"),
    "no step": without("checkpoints/step"),
    "no params": without("checkpoints/params"),
    "no checksum": without("history/checksum"),
    "no column": without("history/loss"),
    "no scale": without("history/class"),
    "no inputs": without("data/training/inputs"),
    "no format": without_attr("/", "format"),
    "no version": without_attr("/", "format_version"),
    "no status": without_attr("/", "status"),
    **{
        f"loss of type {kind}": retyped("history/loss", dtype)
        for kind, dtype in {
            "float32": "f4", "float16": "f2", "long double": "g", "int64": "i8", "complex": "c16", "flag": "?",
            "compound": COMPOUND, "opaque": "V8", "fixed text": "S8", "text": h5py.string_dtype(),
            "list": h5py.vlen_dtype("f8"), "enum": h5py.enum_dtype({"a": 1}, "i8"), "reference": h5py.ref_dtype,
            "array": np.dtype(("f8", (2,))),
        }.items()
    },
    "step of floats": retyped("checkpoints/step", "f8"),
    "step of texts": retyped("history/step", h5py.string_dtype()),
    "params of integers": retyped("checkpoints/params", "i8"),
    "a group for a variable": linked("history/loss", lambda file: file["data"]),
    "a variable for a group": linked("history", lambda file: file["checkpoints/params"]),
    "a type for a variable": linked("history/loss", np.dtype("f8")),
    "step without an axis": replaced("history/step", data=3),
    "step without a value": replaced("history/step", data=h5py.Empty("i8")),
    "step of two axes": replaced("history/step", data=np.zeros((N, 2), "i8")),
    "params of one axis": replaced("checkpoints/params", data=np.zeros(N)),
    "loss of three axes": replaced("history/loss", data=np.zeros((N, 1, 1))),
    "loss without a value": replaced("history/loss", data=h5py.Empty("f8")),
    "more targets than inputs": replaced("data/training/targets", data=np.zeros(6, "i8")),
    "a trillion rows": claiming(TRILLION, *ROWS),
    "a trillion checkpoints": claiming(TRILLION, "checkpoints/step", "checkpoints/params", "checkpoints/checksum"),
    "a trillion steps alone": claiming(TRILLION, "history/step"),
    "fewer losses than steps": claiming(3, "history/loss"),
    "a trillion parameters": replaced("checkpoints/params", shape=(N, TRILLION), dtype="f8", chunks=(1, 1000)),
    "a trillion classes": replaced("history/class", shape=(TRILLION,), dtype="i8", chunks=(1000,)),
    "a trillion samples": replaced("data/training/inputs", shape=(TRILLION, 2), dtype="f8", chunks=(1000, 2)),
    "a trillion targets": replaced("data/training/targets", shape=(TRILLION,), dtype="i8", chunks=(1000,)),
    "a trillion slots": replaced("state/theta", shape=(2, TRILLION), dtype="f8", chunks=(1, 1000)),
    "a trillion tables": replaced("state/rows", shape=(2, TRILLION), dtype="i8", chunks=(1, 1000)),
    "a soft link": linked("history", h5py.SoftLink("/checkpoints")),
    "a soft link to itself": linked("history", h5py.SoftLink("/history")),
    "a soft link to nothing": linked("checkpoints/params", h5py.SoftLink("/nowhere")),
    "a table within itself": linked("history/loss", lambda file: file["history"]),
    "a bomb": bomb("history/loss", N, lambda: zeros(2**28)),
    "a bomb in a large chunk": bomb("history/loss", 2**28, lambda: zeros(2**28)),
    "a chunk that is too short": bomb("history/loss", 2**16, lambda: zlib.compress(bytes(8))),
    "a chunk that is not compressed": bomb("history/loss", 2**10, lambda: bytes(100)),
    "a chunk of four gigabytes": bomb("history/loss", 2**29 - 1, lambda: zlib.compress(bytes(8))),
    "a bomb in the data": bomb("data/training/targets", 2**28, lambda: zeros(2**28)),
    "version of floats": with_attr("/", "format_version", 1.0),
    "versions": with_attr("/", "format_version", [1, 1]),
    "a compound version": with_attr("/", "format_version", np.zeros((), COMPOUND)),
    "a huge version": with_attr("/", "format_version", np.uint64(2**64 - 1)),
    "status without a value": with_attr("/", "status", h5py.Empty("S12")),
    "status of a number": with_attr("/", "status", 3),
    "config of a number": with_attr("/", "config", 3),
    "config of a list": with_attr("/", "config", "[1, 2]"),
    "config that is not JSON": with_attr("/", "config", "{"),
    "config of deep lists": with_attr("/", "config", "[" * 50_000),
    "config of a reference": lambda file: with_attr("/", "config", file["history"].ref)(file),
    "software of a number": with_attr("/", "software", "7"),
    "layout of a number": with_attr("checkpoints", "layout", 3),
    "layout that is not JSON": with_attr("checkpoints", "layout", "[["),
    "layout of a trillion": with_attr("checkpoints", "layout", f'[["w", [{TRILLION}, {TRILLION}]]]'),
    "layout below zero": with_attr("checkpoints", "layout", '[["w", [-4]]]'),
    "layout of texts": with_attr("checkpoints", "layout", '[["w", ["3"]], ["b", "no"]]'),
    "layout of another length": with_attr("checkpoints", "layout", '[["w", [3]]]'),
    "layout of two equal names": with_attr("checkpoints", "layout", '[["w", [3]], ["w", []]]'),
    "attributes that are not JSON": with_attr("history", "json_attributes", "{"),
    "attributes that are a list": with_attr("history", "json_attributes", "[1]"),
    "attributes in another encoding": with_attr("history", "json_attributes", np.bytes_(b"\xff")),
    "dims below zero": with_attr("history/loss", "_Netcdf4Coordinates", np.int32([-1])),
    "dims of texts": with_attr("history/loss", "_Netcdf4Coordinates", "step"),
    "too many dims": with_attr("history/loss", "_Netcdf4Coordinates", np.zeros(30, np.int32)),
    "a dim of texts": with_attr("history/step", "_Netcdf4Dimid", "a"),
    "a dim of many": with_attr("history/step", "_Netcdf4Dimid", np.zeros(5, np.int32)),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_hostile_file_is_refused_in_one_line(process, path, what):
    with h5py.File(path, "r+") as file:
        CHANGES[what](file)
    outcome, detail = process.read(path)
    assert outcome in ("refused at open", "refused in part"), f"{outcome}: {detail}"
    assert process.last_bytes < 1.5e8  # twice the largest chunk that is read


STATES = {
    "texts": retyped("state/theta", "S8"),
    "one value": replaced("state/theta", data=3.0),
    "no sequence": without("state/sequence"),
}


@pytest.mark.parametrize("what", STATES)
def test_a_hostile_state_is_refused_or_none_and_verify_says_so(process, path, what):
    with h5py.File(path, "r+") as file:
        STATES[what](file)
    outcome, detail = process.read(path)
    assert outcome in ("refused at open", "refused in part", "equal, verify says damaged"), f"{outcome}: {detail}"


HARMLESS = {
    "config in another encoding": with_attr("/", "config", np.bytes_(b'{"a": "\xff\xfe"}')),
    "another group": lambda file: file.create_group("more/and/more"),
    "a cycle of groups": lambda file: file.create_group("more").__setitem__("root", file["/"]),
    "a large attribute": with_attr("data", "text", "x" * 60_000),
    "strange attributes": with_attr("data", "\n\u202e", np.zeros((), COMPOUND)),
    "a variable with a strange name": lambda file: file.create_dataset("history/a\nb\t\x1b[31m", data=np.zeros(N)),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_does_not_belong_is_left_alone_or_refused(process, path, what):
    with h5py.File(path, "r+", track_order=True) as file:
        HARMLESS[what](file)
    outcome, detail = process.read(path)
    assert outcome not in FAILURES, detail


def test_names_that_are_no_text_are_refused_or_left_alone(process, path):
    with h5py.File(path, "r+") as file:
        h5py.h5o.link(file["data/training"].id, file["data"].id, b"\xff\xfe")
        h5py.h5o.link(file["history/loss"].id, file["history"].id, b"\xed\xa0\x80\n")
    outcome, detail = process.read(path)
    assert outcome.startswith("refused"), f"{outcome}: {detail}"


def test_a_large_attribute_costs_no_more_than_its_size(process, path):
    size = 2**26
    with h5py.File(path, "r+") as file:
        file.attrs.create("more", np.zeros(size // 8))
    outcome, detail = process.read(path)
    assert outcome not in FAILURES, detail
    assert process.last_bytes < 3 * size


class Opened:
    """Whether a file was opened by anybody since (inotify)."""

    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), 0x20) > 0  # IN_OPEN

    def __bool__(self):
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self):
        os.close(self._descriptor)


def external_storage(name, other):
    def change(file):
        shape, dtype = file[name].shape, file[name].dtype
        size = int(np.prod(shape)) * dtype.itemsize
        replaced(name, shape=shape, dtype=dtype, external=[(str(other), 0, size)])(file)

    return change


def virtual(name, other):
    def change(file):
        dataset = file[name]
        layout = h5py.VirtualLayout(dataset.shape, dataset.dtype)
        layout[...] = h5py.VirtualSource(str(other), name, dataset.shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


ELSEWHERE = {
    "a linked group": lambda other: linked("history", h5py.ExternalLink(str(other), "/history")),
    "a linked variable": lambda other: linked("checkpoints/step", h5py.ExternalLink(str(other), "/checkpoints/step")),
    "linked data": lambda other: linked("data/training", h5py.ExternalLink(str(other), "/data/training")),
    "linked state": lambda other: linked("state", h5py.ExternalLink(str(other), "/state")),
    "a linked scale": lambda other: linked("history/class", h5py.ExternalLink(str(other), "/history/class")),
    "a linked slot": lambda other: linked("state/theta", h5py.ExternalLink(str(other), "/state/theta")),
    "stored params": lambda other: external_storage("checkpoints/params", other),
    "stored steps": lambda other: external_storage("history/step", other),
    "stored state": lambda other: external_storage("state/theta", other),
    "stored sequence": lambda other: external_storage("state/sequence", other),
    "stored classes": lambda other: external_storage("history/class", other),
    "virtual params": lambda other: virtual("checkpoints/params", other),
    "virtual steps": lambda other: virtual("checkpoints/step", other),
    "virtual state": lambda other: virtual("state/theta", other),
    "virtual data": lambda other: virtual("data/training/inputs", other),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_no_other_file_is_opened(process, path, sound, tmp_path, what):
    other = shutil.copy(sound, tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        ELSEWHERE[what](other)(file)
    opened = Opened(other)
    try:
        outcome, detail = process.read(path)
        assert not opened
        assert outcome.startswith("refused"), f"{outcome}: {detail}"
        other.read_bytes()
        assert opened
    finally:
        opened.close()


def test_a_heap_of_texts_that_never_ends_is_refused(process, path):
    """HDF5 itself loops for ever where an object of a heap claims to take no space."""
    with h5py.File(path, "r+") as file:
        file.attrs["software"] = json.dumps({"python": "3" * 100})  # of variable length: in a heap
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 + 8 : heap + 16 + 16] = bytes(8)
    path.write_bytes(content)
    outcome, detail = process.read(path)
    assert outcome not in FAILURES, f"{outcome}: {detail}"


@pytest.mark.parametrize("version", [0, 1, 4, 255])
def test_another_version_of_the_superblock_is_refused(process, path, version):
    content = bytearray(path.read_bytes())
    content[8] = version
    path.write_bytes(content)
    outcome, detail = process.read(path)
    assert outcome == "refused at open", f"{outcome}: {detail}"


@settings(max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**40), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4))
def test_bytes_anywhere_do_no_harm(comparing, sound, tmp_path, changes):
    content = bytearray(sound.read_bytes())
    for at, values in changes:
        start = at % len(content)
        content[start : start + len(values)] = values[: len(content) - start]
    path = tmp_path / "changed.h5"
    path.write_bytes(content)
    outcome, detail = comparing.read(path)
    assert outcome not in FAILURES, f"{outcome}: {detail}"
