"""What callbacks record of a model with batch norms: each checkpoint with the statistics of its moment."""

import numpy as np
import torch
import torch.nn.functional as F

from landscape import Objective, open_run, top_eigenpairs
from landscape.checkpoints import matched
from landscape.step_recorder import StepRecorder


def test_statistics_of_batch_norms_are_recorded_with_theta(tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 4), torch.randint(3, (40,))
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {"model": None, "dtype": None, "second_moment": False, "overwrite": False, "attrs": None, "config": None}
    recorder = StepRecorder(tmp_path / "run.h5", every=2, **options)
    recorder.begin(model, optimizer, 0, constant_rate=True)
    losses = {}
    for step in range(5):
        recorder.before_update(step)
        model.eval()
        losses[step] = F.cross_entropy(model(inputs), targets).item()
        model.train()
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.after_update(loss.item())
    recorder.end(5)
    objective = Objective(
        model.eval(), lambda outputs, targets, step: F.cross_entropy(outputs, targets), inputs, targets
    )
    with open_run(tmp_path / "run.h5") as run:
        assert run.checkpoints.sizes["buffer"] == 10
        np.testing.assert_array_equal(run.checkpoints.buffers[-1, :5], model[1].running_mean)
        eigs = top_eigenpairs(objective, run.checkpoints, k=1)
        assert eigs.attrs["batch_norm"] == "running statistics of each checkpoint"
        own, rows = matched(objective, run.checkpoints)
        found = own.losses(rows.params.values, rows.step.values)
    assert rows.step.values.tolist() == [0, 2, 4, 5]
    np.testing.assert_allclose(found[:3], [losses[0], losses[2], losses[4]], rtol=1e-5)
