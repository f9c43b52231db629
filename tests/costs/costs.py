"""What analyses cost: seconds and memory of each call on networks of 0.01 to 11 million parameters.

Each is measured in a process of its own. The largest network takes minutes a call; one that takes too long is
recorded as such. `gallery/costs.py` shows the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from calls import CALLS, THREADS
from folder import measure_folder
from networks import SHAPES

PLAN = {"transformer": tuple(SHAPES), "ResNet-18": tuple(SHAPES), "transformers.GPT2": ("11M",)}
CALL = Path(__file__).with_name("calls.py")


def measure(folder: Path, family: str, size: str, call: str, timeout: float) -> dict:
    """What ``calls.py`` prints; or ``{"absent": reason}``."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "OMP_WAIT_POLICY": "passive",  # a thread that waits for the other does not work
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, str(CALL), str(folder), family, size, call]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"absent": f"took more than {timeout / 60:.0f} minutes"}
    if done.returncode:
        raise RuntimeError(f"{call} of {family} {size} failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def costs(table: Path, plan: dict[str, Sequence[str]], timeout: float, calls: Sequence[str] = tuple(CALLS)) -> None:
    """Measure what `plan` names, and write each row to `table` when it is known; what it has of others stays."""
    before = json.loads(table.read_text()) if table.exists() else {"rows": []}
    again = {(family, size, call) for family, sizes in plan.items() for size in sizes for call in ("train", *calls)}
    kept = {
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "threads": THREADS},
        "versions": {name: version(name) for name in ("torch", "numpy", "xarray", "h5py")},
        "rows": [row for row in before["rows"] if (row["family"], row["size"], row["call"]) not in again],
    }
    if "folder" in before:
        kept["folder"] = before["folder"]
    for family, sizes in plan.items():
        for size in sizes:
            with tempfile.TemporaryDirectory() as name:
                trained = measure(Path(name), family, size, "train", timeout)
                about = {"family": family, "size": size, "parameters": trained["parameters"]}
                kept["rows"].append(about | {"call": "train"} | trained)
                for call in calls:
                    found = measure(Path(name), family, size, call, timeout)
                    kept["rows"].append(about | {"call": call} | found)
                    write(table, kept)
                    print(f"{family} {size:>6} {call:<28} {found}", flush=True)
    if "ResNet-18" in plan:
        kept["folder"] = measure_folder(max(plan["ResNet-18"], key=list(SHAPES).index))
        write(table, kept)
        print(kept["folder"])


def write(table: Path, kept: dict) -> None:
    """The table as JSON."""
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n")


def processor() -> str:
    """The kind of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    """Measure all, or what the options name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", type=Path, required=True, metavar="FILE", help="JSON file that takes the measurements"
    )
    parser.add_argument("--families", nargs="+", choices=tuple(PLAN), help="only these families")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SHAPES), help="only these sizes")
    parser.add_argument("--calls", nargs="+", choices=tuple(CALLS), default=tuple(CALLS), help="only these calls")
    parser.add_argument(
        "--timeout", type=float, default=1200.0, metavar="S", help="give up a call after so long (1200)"
    )
    options = parser.parse_args()
    chosen = options.sizes or tuple(SHAPES)
    plan = {family: [size for size in sizes if size in chosen] for family, sizes in PLAN.items()}
    plan = {family: sizes for family, sizes in plan.items() if sizes and family in (options.families or PLAN)}
    costs(options.table, plan, options.timeout, options.calls)
    return 0


if __name__ == "__main__":
    sys.exit(main())
