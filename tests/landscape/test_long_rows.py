"""Checkpoints of large networks are loaded one by one, and give what they give together."""

import numpy as np
import pytest
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

import landscape


class Counted(BackendArray):
    """Rows that note how many of them are asked for at a time."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.asked = values, values.shape, values.dtype, []

    def __getitem__(self, key):
        def read(key):
            found = self.values[np.ix_(*(np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)))]
            self.asked.append(len(found))
            return found.reshape(
                [
                    len(np.arange(n)[k])
                    for n, k in zip(self.shape, key, strict=True)
                    if np.ndim(k) or isinstance(k, slice)
                ]
            )

        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, read)


@pytest.fixture(scope="module")
def found(descent):
    eigs = landscape.top_eigenpairs(descent.objective, descent.checkpoints, k=2)
    plane = landscape.plane_slice(
        descent.objective, descent.checkpoints.isel(step=-1), eigs.isel(step=-1), half_width=5.0, n_points=5
    )
    return eigs, plane


ANALYSES = {
    "motion": lambda objective, checkpoints, eigs, plane: landscape.motion(checkpoints.assign_coords(step=range(4))),
    "projection": lambda objective, checkpoints, eigs, plane: landscape.project(objective, checkpoints, plane),
    "gradients": lambda objective, checkpoints, eigs, plane: landscape.gradient_decomposition(
        objective, checkpoints, eigs
    ),
    "loss changes": lambda objective, checkpoints, eigs, plane: landscape.loss_change(objective, checkpoints),
    "one-step sharpness": lambda objective, checkpoints, eigs, plane: landscape.sharpness(
        objective, checkpoints, definitions=["sam"]
    ),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_long_rows_are_loaded_one_by_one(descent, found, monkeypatch, name):
    counted = Counted(descent.checkpoints.params.values)
    variable = xr.Variable(("step", "param"), indexing.LazilyIndexedArray(counted))
    lazy = descent.checkpoints.assign(params=variable)
    together = ANALYSES[name](descent.objective, lazy, *found)
    assert max(counted.asked) == 4
    counted.asked.clear()
    monkeypatch.setattr("landscape.checkpoints.LOADED_ENTRIES", descent.objective.n_params)
    one_by_one = ANALYSES[name](descent.objective, lazy, *found)
    assert set(counted.asked) == {1}
    xr.testing.assert_allclose(one_by_one, together, rtol=1e-12)
