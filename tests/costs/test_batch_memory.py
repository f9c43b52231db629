"""However many batches there are, memory is that of one, and they are never held together."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by means of Linux")

MEASURE = """
import sys

import torch

sys.path.insert(0, sys.argv[1])
from memory import forget_peak, peak_bytes, resident_bytes

from landscape import Objective

N_FEATURES, N_SAMPLES = 100_000, 160


class Made:
    '''Batches of 64 MB that are made when they are asked for.'''

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        for i in range(self.n):
            yield torch.full((N_SAMPLES, N_FEATURES), (i + 1) / N_FEATURES), torch.zeros(N_SAMPLES, 2)


torch.set_num_threads(1)
model = torch.nn.Linear(N_FEATURES, 2, bias=False)
for n in (2, 12):
    objective = Objective(model, lambda o, t, step: ((o - t) ** 2).mean(), Made(n))
    theta = objective.layout.flatten_model(model)
    objective.hvp(theta, theta, 0)
    before = resident_bytes()
    forget_peak()
    losses = objective.losses(torch.stack([theta, theta]), 0)
    objective.gradient(theta, 0)
    objective.hvp(theta, theta, 0)
    print(n, peak_bytes() - before)
"""


def test_memory_does_not_grow_with_the_number_of_batches():
    reliability = Path(__file__).parents[1] / "reliability"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(reliability)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    few, many = (int(line.split()[1]) for line in done.stdout.splitlines())
    batch = 4 * 100_000 * 160
    assert few > 0.5 * batch  # what is measured is there
    assert many < few + 3 * batch  # of the ten that there are more; the system's allocator leaves one or two
