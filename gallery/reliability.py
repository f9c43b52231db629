r"""
What a run file stands
======================

A run may take days, and its file is the only copy. What is promised about it, what is not, and how each promise was
tried by breaking things.
"""

# %%
# Promised
# --------
# - **Killed at any moment**, a run opens with plain :func:`landscape.open_run` and holds every committed row: all but
#   the last block, of 256 rows or 10 seconds. Training resumed from it ends as if it had never been disturbed: on the
#   same kernel, threads and versions bit for bit, with the state of the optimiser, of random numbers and of the order
#   of the data.
# - **A full disk, a lost permission, a vanished file** end training with one line. What was committed before is safe,
#   and the run resumes once there is room. A file that cannot be created leaves nothing behind. Ctrl-C, and on the
#   command line SIGTERM, commit the last rows first; the run's status is then "interrupted".
# - **What is read is what was recorded.** Steps are compared with their checksum when a run is opened, each row when it
#   is first read; layout, data sets, coordinates and attributes have checksums too. A damaged file is a :class:`landscape.RunFormatError` where it is
#   damaged, and the rest is readable; ``open_run(path, check=False)`` reads rows as they are, and
#   ``python -m landscape verify`` lists what is wrong.
# - **A hostile file** makes nothing run, opens no other file, and claims no memory that its size does not back.
# - **Readers never block a writer**, nor it them: runs can be read while they train. Two writers of one file are refused.
#
# Not promised
# ------------
# - *Power cuts and crashes of the operating system.* Blocks are handed to the operating system and not forced to the
#   disk; what it had not written then is lost, and in any order.
# - *Network file systems* that keep neither order nor locks, as many NFS mounts. The lock is advisory, by ``flock``;
#   on such a system nothing guards against a second writer on another machine.
# - *Forgeries.* Checksums find accidents. Whoever edits a file can make them right, and a file made to crash HDF5
#   itself may do so.
# - *Two hard links* to one file are two files to its lock: a writer by each name would not be refused. Symbolic links are
#   seen through.
# - *Other programs.* Those that read HDF5's lists of dimension scales can loop for ever on one wrong bit in the heap
#   that holds them; ours does not read it.

# %%
# How it was tried
# ----------------
# ``make crash``, ``make fuzz`` and ``make load`` try to break run files, and count; shorter versions of each run with
# the tests. These are the counts of the last full runs.
import json
from pathlib import Path

tried = json.loads(Path("data/reliability.json").read_text())
crash, kill, fuzz, load = (
    tried[name] for name in ("crash", "kill", "fuzz", "load")
)
for name, counted in tried.items():
    versions = ", ".join(
        f"{k} {counted['versions'][k]}" for k in ("hdf5", "h5py", "numpy")
    )
    print(f"{name:6} {counted['date']}: {versions}")

# %%
# **Every moment at which a writer could die.** Each write of a recording is logged, and each prefix of the log is a file,
# as if the process had died there; also within a write, where a page of the file ends. Every one must open with all rows
# whose commit had returned, and resume to the undisturbed end. So must the files of resuming writers that die as well.
print(
    f"{crash['points']} moments within {crash['writes']} writes: "
    f"{crash['failures']} wrong"
)
print(
    f"{crash['points_of_resumed_writers']} moments of resuming writers: "
    f"{crash['failures_of_resumed_writers']} wrong"
)

# %%
# **Real kills.** Training processes (gradient descent and Adam, whole batches and random ones, with eigenpairs) were
# ended by ``kill -9`` at random moments, opened, resumed, and compared bit for bit with runs that nobody disturbed.
phases = ", ".join(f"{n} {phase}" for phase, n in kill["phases"].items())
print(
    f"{kill['runs']} runs ({phases}; {kill['killed twice']} killed twice): "
    f"{kill['failures']} ended differently"
)

# %%
# **Corrupted files.** Bits flipped, stretches overwritten, swapped or repeated, files cut off at any byte; half of the
# damage is in the first pages, where the structure stands. Each file is read whole in a process of its own. It must be
# refused with a clear error, or everything read must equal what was recorded; and ``verify`` must find what reading
# found. No crash, no wrong number, no more than ten seconds.
import matplotlib.pyplot as plt

import viz
from viz.style import BLUE

outcomes = fuzz["outcomes"]
with viz.style():
    figure, ax = plt.subplots(figsize=(6.9, 1.7), layout="constrained")
    bars = ax.barh(list(outcomes), list(outcomes.values()), color=BLUE)
    ax.bar_label(bars, padding=3)
    ax.invert_yaxis()
    ax.set_xlabel(f"Files, of {fuzz['files']:,}")
plt.show()
print(
    f"{fuzz['files']} files: {fuzz['failures']} failures; the slowest took "
    f"{fuzz['slowest_seconds']} s, the most memory beyond that of a sound file was "
    f"{fuzz['peak_megabytes']} MB"
)

# %%
# **Load.** A run of a million steps, one of ten gigabytes, and a hundred runs at once. *Memory* is what reading adds at its
# peak; what is read is compared with what was written.
print(f"{'':34}{'time':>9}{'memory':>11}")
for name in ("long", "large"):
    run = load[name]
    print(
        f"{run['steps']:,} steps, {run['checkpoints']:,} checkpoints of {run['parameters']:,} "
        f"parameters, {run['bytes'] / 1e9:.2f} GB"
    )
    for read, cost in run["reads"].items():
        print(
            f"    {read:30}{cost['seconds']:7.2f} s{cost['bytes'] / 1e6:8.0f} MB"
        )
many = load["many"]
print(f"{many['runs']} runs open at once")
print(f"    {'opening':30}{many['seconds_opening']:7.2f} s")
print(
    f"    {'reading all':30}{many['reads']['all']['seconds']:7.2f} s"
    f"{many['reads']['all']['bytes'] / 1e6:8.0f} MB"
)
print(f"failures: {load['failures']}")
