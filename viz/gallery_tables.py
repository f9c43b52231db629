"""Tables of the guide, made of what was measured: benchmarks.json and reliability.json of ``gallery/data``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from viz.gallery_reference import write_if_changed

MORE = {"costs": "\nLarger networks, and more of the analyses: :doc:`/examples/costs`.\n"}
"""What is added to the page of the same name where there is a script of this name."""


def write_tables(data: Path, source: Path, shown: Sequence[str] = ()) -> None:
    """Write ``costs.inc`` and ``promises.inc``, for pages to include; what was not measured is said to be missing."""
    made: dict[str, tuple[str, Callable[[dict], str]]] = {
        "costs": ("benchmarks", costs),
        "promises": ("reliability", promises),
    }
    for page, (name, table) in made.items():
        file = data / f"{name}.json"
        text = table(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else f"(There is no {file.name}.)\n"
        write_if_changed(source / f"{page}.inc", text + (MORE.get(page, "") if page in shown else ""))


def costs(measured: dict) -> str:
    """Tables of what eigenpairs, sections, recording and training cost."""
    return "\n".join(
        [
            _machine(measured),
            _eigenpairs(measured["eigenpairs"]),
            _points(measured),
            _others(measured),
        ]
    )


def _machine(measured: dict) -> str:
    machine, versions = measured["machine"], measured["versions"]
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] != 1)
    where = f"{machine['processor']}, {threads}" if not machine.get("cuda") else str(machine["cuda"])
    return f"Measured on {measured['date']}: {where}, PyTorch {versions['torch']}.\n"


def _eigenpairs(rows: Sequence[dict]) -> str:
    """Cost of the two largest eigenpairs."""
    body = [
        (
            f"{row['parameters']:,}",
            f"{row['samples']:,}",
            row["dtype"],
            row["settings"],
            f"{row['products']:.1f}",
            _time(median(row["milliseconds"]) / 1e3),
        )
        for row in _of_each_size([row for row in rows if row["ours"]])
    ]
    head = ("parameters", "samples", "type", "how", "products", "time")
    return _table("The two largest eigenpairs, a checkpoint, residuals at most 0.001", head, body)


def _points(measured: dict) -> str:
    """Cost of a point of a plane, on the finest grid that was measured of each workload and way."""
    parameters = {row["workload"]: row["parameters"] for row in measured["eigenpairs"]}
    finest: dict[tuple, dict] = {}
    for row in _of_each_size([row for row in measured["slices"] if row["solver"].startswith("landscape, ")]):
        key = (row["workload"], row["solver"])
        finest[key] = max(finest.get(key, row), row, key=lambda one: one["points"])
    body = [
        (
            f"{parameters[workload]:,}",
            row["dtype"],
            solver.removeprefix("landscape, "),
            f"{row['points']} × {row['points']}",
            _time(median(row["milliseconds"]) / 1e3),
        )
        for (workload, solver), row in finest.items()
    ]
    return _table("A point of a plane", ("parameters", "type", "how", "grid", "time"), body)


def _of_each_size(rows: Sequence[dict]) -> list[dict]:
    """Rows in float64, and those in float32 of workloads that were measured in nothing else."""
    exact = {row["workload"] for row in rows if row["dtype"] == "float64"}
    return [row for row in rows if row["dtype"] == "float64" or row["workload"] not in exact]


def _others(measured: dict) -> str:
    recording, memory = measured["recording"], measured["memory"]
    gradient, product = measured["products"][0], next(row for row in measured["products"] if row["ours"])
    ratio = median(a / b for a, b in zip(product["milliseconds"], gradient["milliseconds"], strict=True))
    body = [
        ("a Hessian-vector product of a ResNet-20, of any model", f"{ratio:.2f} gradients"),
        (
            f"recording one step and its θ, {recording['parameters']:,} parameters",
            _time(recording["microseconds"]["process"] / 1e6),
        ),
        (
            f"the same by ``torch.save``, {recording['parameters']:,} parameters",
            _time(recording["torch_save_microseconds"]["process"] / 1e6),
        ),
        *(
            (
                f"a step of training one network, {row['dtype']}: {row['solver']}",
                _time(median(row["microseconds"]) / 1e6),
            )
            for row in measured["training"]
            if row["ours"]
        ),
        (
            f"memory for eigenpairs of {memory['gigabytes']:.0f} GB of checkpoints",
            f"{memory['peak_gigabytes']:.2f} GB",
        ),
    ]
    return _table("Other things", ("what", "cost"), body)


def promises(tried: dict) -> str:
    """Table of what was tried against run files, and how often it went wrong."""
    crash, kill, fuzz, load = (tried[name] for name in ("crash", "kill", "fuzz", "load"))
    refused = sum(n for outcome, n in fuzz["outcomes"].items() if outcome.startswith("refused"))
    body = [
        (
            f"moments at which a writer could die, within {crash['writes']:,} writes",
            f"{crash['points']:,}",
            str(crash["failures"]),
        ),
        (
            "the same for writers that resume",
            f"{crash['points_of_resumed_writers']:,}",
            str(crash["failures_of_resumed_writers"]),
        ),
        ("training processes ended by ``kill -9``, then resumed", f"{kill['runs']:,}", str(kill["failures"])),
        (
            f"files damaged at random, {refused:,} of which were refused as a whole or in part",
            f"{fuzz['files']:,}",
            str(fuzz["failures"]),
        ),
        (
            f"large runs: {load['long']['steps']:,} steps, {load['large']['bytes'] / 1e9:.0f} GB, and many at once",
            f"{load['many']['runs'] + 2:,}",
            str(load["failures"]),
        ),
    ]
    dates = sorted({part["date"] for part in tried.values()})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return _table(f"What was tried ({when})", ("what", "how often", "failures"), body)


def _time(seconds: float) -> str:
    """A duration with three digits in a unit of its size."""
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 0.0)) if seconds >= s)
    return f"{seconds / (size or 1e-6):.3g}\N{NO-BREAK SPACE}{unit}"


def _table(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = "".join(
        "".join(f"   {'* -' if i == 0 else '  -'} {cell}\n" for i, cell in enumerate(row)) for row in (head, *body)
    )
    return f"**{title}**\n\n.. list-table::\n   :header-rows: 1\n   :widths: auto\n\n{rows}"
