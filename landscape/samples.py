"""The samples of an objective: batches of tensors, or of several tensors by name, always the same and in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

IGNORED = -100
"""Integer target that is not counted, as in ``torch.nn.CrossEntropyLoss``."""

Inputs = torch.Tensor | dict[str, torch.Tensor]
"""What a model is called with: one tensor, or several by the names of its arguments."""


def batches_of(inputs, targets, batch_size: int | None, convert: Callable, *, whole: bool = False) -> Iterable:
    """(inputs, targets) pairs that can be iterated again and again.

    Parameters
    ----------
    inputs : torch.Tensor, mapping of str to torch.Tensor, or iterable of batches
        As `landscape.Objective` takes them.
    targets : torch.Tensor, str or None
        The targets; or the name of their entry in batches that are mappings.
    batch_size : int or None
        Samples of a batch, where these are no batches already.
    convert : callable
        Puts tensors where and in the type in which they are used.
    whole : bool
        Whether the model is given the targets too, so that batches have to be mappings.

    Raises
    ------
    ValueError
        If there are no samples, unequal numbers of them, NaN among the inputs, or batches that can be iterated once.
    """
    if targets is None or isinstance(targets, str):
        if isinstance(inputs, torch.Tensor | Mapping):
            raise ValueError("targets are missing; only an iterable of batches goes without")
        if isinstance(inputs, Iterator):
            raise ValueError("inputs can be iterated only once, but are needed again and again; give a list of it")
        return Batches(inputs, targets, whole)
    if whole:
        raise ValueError("a model that computes its own loss needs an iterable of batches that are mappings")
    inputs = dict(inputs) if isinstance(inputs, Mapping) else torch.as_tensor(inputs)
    inputs, targets = convert(inputs), convert(torch.as_tensor(targets))
    lengths = {len(part) for part in parts(inputs)}
    if lengths != {len(targets)} or len(targets) == 0:
        raise ValueError(
            f"inputs and targets must hold equally many samples, at least one; got {', '.join(map(str, lengths))} and "
            f"{len(targets)}"
        )
    if not is_finite(inputs):
        raise ValueError("inputs hold NaN or inf; remove or impute those samples first")
    size = len(targets) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(0, len(targets), size)
    return [(take(inputs, slice(i, i + size)), targets[i : i + size]) for i in starts]


class Batches:
    """Batches of the user's iterable as pairs; refused, with their number, where they are not as they should be.

    A batch is a pair, or a mapping such as a DataLoader of Hugging Face gives, of which `targets` names one entry.
    """

    def __init__(self, batches: Iterable, targets: str | None, whole: bool):
        self.batches, self.targets, self.whole = batches, targets, whole

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        for i, batch in enumerate(self.batches):
            if isinstance(batch, Mapping):
                pair = self._pair(i, dict(batch))
            elif isinstance(batch, tuple | list) and len(batch) == 2 and not (self.targets or self.whole):
                pair = tuple(dict(part) if isinstance(part, Mapping) else part for part in batch)
            else:
                kind = "mapping" if self.targets or self.whole else "pair (inputs, targets) or a mapping"
                raise ValueError(f"each batch must be a {kind}, but batch {i} is {type(batch).__name__}")
            if not is_finite(pair[0]):
                raise ValueError(f"inputs of batch {i} hold NaN or inf; remove or impute those samples first")
            yield pair

    def _pair(self, i: int, batch: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        name = self.targets or "labels"
        strange = [key for key, value in batch.items() if not isinstance(value, torch.Tensor)]
        if strange:
            raise ValueError(f"batch {i} holds {strange[0]}, which is no tensor; leave it out, or make it one")
        if name not in batch:
            raise ValueError(f'batch {i} holds {", ".join(batch)}, but no {name}; name the targets: targets="…"')
        return batch if self.whole else {key: value for key, value in batch.items() if key != name}, batch[name]

    def with_targets(self, inputs: Inputs, targets: torch.Tensor) -> Inputs:
        """Inputs for other targets."""
        return inputs | {self.targets or "labels": targets} if self.whole else inputs


def parts(inputs: Inputs) -> list[torch.Tensor]:
    """The tensors of which inputs consist."""
    return [*inputs.values()] if isinstance(inputs, dict) else [inputs]


def each(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    """`function` of every tensor of inputs."""
    return {name: function(part) for name, part in inputs.items()} if isinstance(inputs, dict) else function(inputs)


def take(inputs: Inputs, samples: slice) -> Inputs:
    """Some of the samples."""
    return each(lambda part: part[samples], inputs)


def together(first: Inputs, second: Inputs) -> Inputs:
    """The samples of both."""
    if isinstance(first, dict):
        return {name: torch.cat([part, second[name]]) for name, part in first.items()}
    return torch.cat([first, second])


def is_finite(inputs: Inputs) -> bool:
    """Whether all floating-point inputs are."""
    return all(bool(part.isfinite().all()) for part in parts(inputs) if part.is_floating_point())


def called(model: Callable, inputs: Inputs):
    """What `model` answers: called with a tensor, or with several by name."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def n_counted(targets: torch.Tensor) -> int:
    """Of how many numbers the loss is usually the mean: all targets, but the integer ones that are ignored."""
    return targets.numel() if targets.is_floating_point() else int((targets != IGNORED).sum())
