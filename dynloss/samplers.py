"""Mini-batches as functions of the step: nothing to store, and the same batches after an interruption."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from dynloss.schedules import Schedule, schedule_from_config


class UniformSampler:
    """Every sample once an epoch, in a new random order each time; called with a step, it gives indices (B,).

    The last batch of an epoch holds what is left and may be smaller.

    Parameters
    ----------
    n_samples : int
        Number of samples P.
    batch_size : int
        Samples B in a batch, 1 … P.
    seed : int
        Seed of the orders.

    Examples
    --------
    >>> sampler = UniformSampler(n_samples=10, batch_size=4)
    >>> torch.cat([sampler(step) for step in range(3)]).sort().values
    tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    name = "uniform"

    def __init__(self, n_samples: int, batch_size: int, *, seed: int = 0):
        _check_batch(batch_size, n_samples)
        self.n_samples, self.batch_size, self.seed = n_samples, batch_size, seed
        self._batches_per_epoch = -(-n_samples // batch_size)
        self._order = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.n_samples))

    def __call__(self, step: int) -> torch.Tensor:
        """Indices (B,) of the batch at `step`."""
        epoch, place = divmod(int(step), self._batches_per_epoch)
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def config(self) -> dict:
        """What describes this sampler, as JSON-ready values."""
        return {"name": self.name, "batch_size": self.batch_size, "seed": self.seed}


class OscillatingSampler:
    """Batches whose classes oscillate: each sample is drawn with a probability ∝ Γ_{y_j}(t), with replacement.

    With equally many samples a class, class i makes up Γ_i/C of a batch on average, so that the expected gradient of
    the *static* loss on a batch is that of the dynamical loss on all samples: the outlook of Lavin Pallero and
    Ruiz-Garcia 2025 (arXiv 2410.10690).

    Parameters
    ----------
    targets : torch.Tensor
        Classes (P,) of all samples.
    batch_size : int
        Samples B in a batch.
    schedule : Schedule
        Γ(t), of as many classes as the targets have.
    seed : int
        Seed of the draws.
    """

    name = "oscillating"

    def __init__(self, targets: torch.Tensor, batch_size: int, schedule: Schedule, *, seed: int = 0):
        self.targets = np.asarray(targets)
        if not (len(self.targets) and self.targets.min() >= 0 and self.targets.max() < schedule.n_classes):
            raise ValueError(f"targets must be classes 0 … {schedule.n_classes - 1} of the schedule, at least one")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.schedule, self.seed = batch_size, schedule, seed

    @property
    def n_samples(self) -> int:
        """Number of samples P."""
        return len(self.targets)

    def __call__(self, step: int) -> torch.Tensor:
        """Indices (B,) of the batch at `step`."""
        weights = self.schedule(int(step)).numpy()[self.targets]
        rng = np.random.default_rng([self.seed, int(step)])
        return torch.from_numpy(rng.choice(self.n_samples, self.batch_size, p=weights / weights.sum()))

    def config(self) -> dict:
        """What describes this sampler, as JSON-ready values."""
        options = {"batch_size": self.batch_size, "schedule": self.schedule.config(), "seed": self.seed}
        return {"name": self.name, **options}


def sampler_from_config(config: dict, targets: torch.Tensor) -> UniformSampler | OscillatingSampler:
    """The sampler that `config` describes, over samples of the classes `targets`.

    Raises
    ------
    ValueError
        If there is no such sampler.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name == UniformSampler.name:
        return UniformSampler(len(targets), **options)
    if name == OscillatingSampler.name:
        schedule = schedule_from_config(options.pop("schedule"))
        return OscillatingSampler(targets, schedule=schedule, **options)
    raise ValueError(f"unknown sampler {name!r}; known samplers: {UniformSampler.name}, {OscillatingSampler.name}")


def _check_batch(batch_size: int, n_samples: int) -> None:
    if not 1 <= batch_size <= n_samples:
        raise ValueError(f"batch_size must be between 1 and {n_samples}, the number of samples, got {batch_size}")
