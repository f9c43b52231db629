"""Corrupted run files: each must be refused with a clear error, or read as if nothing had happened to it.

Run as a script, it damages two run files, one finished and one of a killed writer, in 2,000 ways, has a process
read everything in each, compares what could be read with the sound file, and prints how many ended how.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import summary
from damage import damaged
from reader import FAILURES, Reader

import dynloss


def sound_files(folder: Path) -> list[Path]:
    """A finished run by momentum, and one by Adam as its killed writer would leave it."""
    sets = [dynloss.spiral(n_per_class=8, n_classes=3, seed=seed) for seed in range(2)]
    loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=10, period=20)
    options = {"validation": sets[1], "n_steps": 60, "checkpoint_every": 5, "eigenpairs": 2, "eigenpairs_every": 15}
    options |= {"learning_rate": 0.05}

    def model():
        return dynloss.mlp(n_inputs=2, width=10, n_classes=3, seed=0)

    finished = folder / "finished.h5"
    dynloss.train(model(), loss, sets[0], record=finished, optimizer="momentum", **options)
    recording, killed = folder / "recording.h5", folder / "killed.h5"
    draw = dynloss.UniformSampler(24, 8)

    def sampler(step):
        if step == 290:  # a block of 256 rows is committed
            shutil.copy(recording, killed)
        return draw(step)

    options |= {"n_steps": 300, "sampler": sampler, "optimizer": "adam"}
    dynloss.train(model(), loss, sets[0], record=recording, **options)
    return [finished, killed]


def fuzz(cases: range, seed: int, keep: Path | None = None) -> tuple[Counter, list[tuple[int, str, str]], dict]:
    """Counts of outcomes, the failed cases (number, what was done, details), and the slowest and largest reading.

    Parameters
    ----------
    cases : range
        Numbers of the cases: together with `seed`, each says what is done to which file.
    seed : int
        Seed of all.
    keep : Path, optional
        Folder for copies of the files that failed.
    """
    counts, failed = Counter(), []
    with tempfile.TemporaryDirectory() as name:
        sound = sound_files(Path(name))
        readers = [Reader(path) for path in sound]

        def share(which: int) -> None:
            """The cases of one of the sound files, in a process of its own."""
            content = sound[which].read_bytes()
            with readers[which] as reader:
                for case in cases:
                    if case % len(sound) != which:
                        continue
                    what, image = damaged(content, np.random.default_rng([seed, case]))
                    path = Path(name, f"case{case}.h5")
                    path.write_bytes(image)
                    outcome, detail = reader.read(path)
                    counts[outcome] += 1
                    if outcome in FAILURES:
                        failed.append((case, f"{sound[which].stem}: {what}", f"{outcome}: {detail}"))
                        if keep is not None:
                            keep.mkdir(parents=True, exist_ok=True)
                            shutil.copy(path, keep)
                    path.unlink()

        with ThreadPoolExecutor(len(sound)) as pool:
            list(pool.map(share, range(len(sound))))
    slowest, peak = max(r.slowest for r in readers), max(r.peak_bytes for r in readers)
    return counts, sorted(failed), {"slowest_seconds": round(slowest, 2), "peak_megabytes": round(peak / 1e6)}


def main() -> int:
    """Try all cases; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="number of corrupted files (2000)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first case (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the files that failed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="JSON file that takes the counts")
    options = parser.parse_args()
    start = time.monotonic()
    counts, failed, extremes = fuzz(range(options.first, options.first + options.cases), options.seed, options.keep)
    seconds = time.monotonic() - start
    kinds: dict[str, list] = {}
    for one in failed:  # what differs in numbers only is of one kind
        kinds.setdefault(re.sub(r"[^a-z]+", " ", one[2])[:80], []).append(one)
    for alike in kinds.values():
        case, what, detail = alike[0]
        more = f" and {len(alike) - 1} like it: {', '.join(str(one[0]) for one in alike[1:5])} …" if alike[1:] else ""
        print(f"case {case}{more}\n  {what[:200]}\n  {detail[:600]}", file=sys.stderr)
    for outcome, count in counts.most_common():
        print(f"{count:6} {outcome}")
    print(
        f"{sum(counts.values())} corrupted files in {seconds:.0f} s, {len(failed)} failures; the slowest took "
        f"{extremes['slowest_seconds']} s, the most memory was {extremes['peak_megabytes']} MB"
    )
    if options.table:
        counted = {"files": sum(counts.values()), "failures": len(failed), "outcomes": dict(counts.most_common())}
        summary.write(options.table, "fuzz", {**counted, **extremes, "seconds": round(seconds), "seed": options.seed})
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
