"""What a solver returned, checked outside the timed part, into its row of the table."""

from __future__ import annotations

import torch
from reference import TOLERANCE, Reference, relative_residuals
from solvers import Pairs
from workloads import Workload


def check(
    row: dict,
    workload: Workload,
    found: list[Pairs],
    reference: Reference | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Fill `row`, over all rounds; ours must be good to the tolerance, certified where asked for, and not wrong.

    Without a `reference`, which costs hundreds of products, nothing is said about wrong pairs. Residuals are measured
    with products in `dtype`.
    """
    residuals = [r for i, pairs in enumerate(found) for r in relative_residuals(workload, i, pairs, dtype)]
    flags = [bool(flag) for pairs in found if pairs.certified is not None for flag in pairs.certified]
    row["checkpoints"] = len(found)
    row["products"] = float(sum(pairs.n_products for pairs in found) / len(found))
    row["residual"] = max([*residuals, row.get("residual", 0.0)])
    row["pairs"] = row.get("pairs", 0) + len(residuals)
    row["inaccurate"] = row.get("inaccurate", 0) + sum(r > TOLERANCE for r in residuals)
    row["certified"] = row.get("certified", 0) + sum(flags) if flags else None
    wrong = None if reference is None else sum(reference.n_wrong(workload, i, pairs) for i, pairs in enumerate(found))
    row["wrong"] = wrong if wrong is None else row.get("wrong", 0) + wrong
    if row["ours"]:
        assert row["inaccurate"] == 0, f"largest residual {row['residual']:.1e}"
        assert not row["wrong"]
        assert all(flags)
