"""Largest eigenvalues of other models' Hessians agree with curvlinops: batch norm, LSTM, attention, tied weights.

Under torch 2.13 second derivatives of layer norm are wrong in torch.func, on which curvlinops stands: its matrix is
then not symmetric, and the test says so. Ours is compared with dense Hessians for all of them in tests/landscape.
"""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.sparse.linalg import eigsh

from landscape import Objective, top_eigenpairs
from landscape.model_copy import twice_differentiable
from tests.landscape.test_architectures import CURVED, built

curvlinops = pytest.importorskip("curvlinops")


@pytest.mark.parametrize("name", CURVED)
def test_eigenvalues_agree_with_curvlinops(name):
    model, inputs, targets = built(name, torch.float64)
    loss = torch.nn.CrossEntropyLoss()
    objective = Objective(model, lambda outputs, targets, step: loss(outputs, targets), inputs, targets)
    row = xr.Dataset({"params": ("param", objective.layout.flatten_model(model).numpy())}, {"step": 0})
    eigs = top_eigenpairs(objective, row, k=3, tol=1e-9)
    with twice_differentiable(recurrent=True):  # of torch's kernels, those that have a double backward
        operator = curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), [(inputs, targets)])
        operator = operator.to_scipy()
        dense = operator @ np.eye(operator.shape[0])
        if (asymmetry := np.abs(dense - dense.T).max() / np.abs(dense).max()) > 1e-8:
            pytest.skip(f"no Hessian: the peer's matrix is asymmetric by {asymmetry:.2g} of its largest entry")
        values = eigsh(operator, k=3, which="LA", tol=1e-10, return_eigenvectors=False)
    np.testing.assert_allclose(eigs.eigenvalue, np.sort(values)[::-1], rtol=1e-6)
