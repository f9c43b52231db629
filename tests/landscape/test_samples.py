"""Batches of real data: several tensors by name, models with their own loss, targets that are ignored, weight decay."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import dynloss
import landscape
from landscape import Objective

N_WORDS, N_TOKENS, IGNORED = 7, 6, -100


class Language(nn.Module):
    """A small causal model that answers as those of Hugging Face do, with a loss that goes down to float32."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(N_WORDS, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, N_WORDS, bias=False)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embedding(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        logits = self.head(torch.tanh(self.mix(x.cumsum(1))))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def next_token(outputs, targets, step):
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def language(dtype=torch.float64):
    """A model and its samples by name; sentences end at different tokens, and one has none that counts."""
    torch.manual_seed(0)
    model, words = Language().to(dtype), torch.randint(N_WORDS, (10, N_TOKENS))
    labels = words.clone()
    for row, length in enumerate((6, 6, 6, 3, 4, 2, 6, 2, 1, 5)):
        labels[row, length:] = IGNORED
    return model, {"input_ids": words, "attention_mask": (labels != IGNORED).long(), "labels": labels}


def batches(samples, size):
    return [{name: part[i : i + size] for name, part in samples.items()} for i in range(0, 10, size)]


def truth(model, samples):
    """Loss, gradient and one Hessian product of the model itself, in its own type, by autograd."""
    parameters = list(model.parameters())
    inputs = {name: part for name, part in samples.items() if name != "labels"}
    loss = next_token(model(**inputs).logits, samples["labels"], 0)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    vector = torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype)
    product = torch.autograd.grad(flat @ vector, parameters)
    return loss.detach(), flat.detach(), vector, torch.cat([part.flatten() for part in product])


@pytest.mark.parametrize("size", [10, 3, 1])
@pytest.mark.parametrize("own", [True, False], ids=["own loss", "loss_fn"])
def test_mappings_of_token_batches_are_one_data_set_in_full_precision(own, size):
    model, samples = language()
    objective = Objective(model, None if own else next_token, batches(samples, size))
    theta = objective.layout.flatten_model(model)
    loss, gradient, vector, product = truth(model, samples)
    torch.testing.assert_close(objective.loss(theta), loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(objective.gradient(theta, 0), gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(objective.hvp(theta, vector, 0), product, rtol=1e-9, atol=1e-13)
    stacked = torch.stack([theta, 2 * theta])
    torch.testing.assert_close(objective.losses(stacked, 0)[0], loss, rtol=1e-12, atol=0)


def test_a_loader_of_mappings_has_its_targets_by_any_name_and_may_not_shuffle():
    model, samples = language()
    samples["next"] = samples.pop("labels")
    rows = [{name: part[i] for name, part in samples.items()} for i in range(10)]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    objective = Objective(model, next_token, loader, targets="next")
    theta = objective.layout.flatten_model(model)
    expected = next_token(model(samples["input_ids"], samples["attention_mask"]).logits, samples["next"], 0).detach()
    torch.testing.assert_close(objective.loss(theta), expected, rtol=1e-12, atol=0)
    shuffled = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
    shuffled = Objective(model, next_token, shuffled, targets="next")
    with pytest.raises(ValueError, match="the batches are others in a second pass"):
        shuffled.linearize(theta, 0)


def test_tensors_by_name_are_cut_into_batches():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, left, right):
            return self.weight[0] * left + self.weight[1] * right

    inputs = {"left": torch.arange(5.0), "right": torch.ones(5)}
    for size in (None, 2):
        objective = Objective(Sum(), lambda o, t, step: ((o - t) ** 2).mean(), inputs, torch.zeros(5), batch_size=size)
        assert objective.loss(torch.tensor([1.0, 2.0])).item() == pytest.approx(np.mean((np.arange(5) + 2) ** 2))
    inputs["right"] = torch.ones(4)
    with pytest.raises(ValueError, match="equally many samples, at least one; got"):
        Objective(Sum(), lambda o, t, step: o.mean(), inputs, torch.zeros(5))


def sums(outputs, targets, step):
    return ((outputs - targets) ** 2).sum()


def test_losses_that_do_not_add_up_to_that_of_all_samples_are_refused():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
    with pytest.raises(ValueError, match=r"over two batches together is .*, not .*reduction=\"mean\".*count="):
        Objective(model, sums, inputs, targets, batch_size=4)
    Objective(model, sums, inputs, targets)  # one batch is what it is


def test_what_a_mean_is_over_can_be_said():
    model, samples = language()

    def by_sentence(outputs, targets, step):
        losses = F.cross_entropy(outputs.mT, targets, reduction="none", ignore_index=IGNORED)
        return (losses.sum(1) / (targets != IGNORED).sum(1)).mean()

    with pytest.raises(ValueError, match="count="):
        Objective(model, by_sentence, batches(samples, 4))
    objective = Objective(model, by_sentence, batches(samples, 4), count=len)
    theta = objective.layout.flatten_model(model)
    whole = Objective(model, by_sentence, batches(samples, 10))
    torch.testing.assert_close(objective.loss(theta), whole.loss(theta), rtol=1e-12, atol=0)

    class BySentence:
        n_counted = staticmethod(len)
        __call__ = staticmethod(by_sentence)

    told = Objective(model, BySentence(), batches(samples, 4))
    assert told.loss(theta) == objective.loss(theta)


def test_weight_decay_adds_its_square_and_is_stated():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 2).double(), torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))

    def loss_fn(outputs, targets, step):
        return F.cross_entropy(outputs, targets)

    plain = Objective(model, loss_fn, inputs, targets)
    theta = plain.layout.flatten_model(model)
    vectors = torch.randn(2, 3, 8, dtype=torch.float64)
    stacked = torch.stack([theta, theta / 2])
    for size in (None, 3):
        decayed = Objective(model, loss_fn, inputs, targets, weight_decay=0.3, batch_size=size)
        torch.testing.assert_close(decayed.losses(stacked, 0), plain.losses(stacked, 0) + 0.15 * (stacked**2).sum(1))
        torch.testing.assert_close(decayed.gradient(stacked, 0), plain.gradient(stacked, 0) + 0.3 * stacked)
        for matrix in ("linearize", "gauss_newton"):
            found, without = (getattr(one, matrix)(stacked, 0)(vectors) for one in (decayed, plain))
            torch.testing.assert_close(found, without + 0.3 * vectors)
    rows = xr.Dataset({"params": (("step", "param"), stacked.numpy())}, {"step": [0, 1]})
    eigs = landscape.top_eigenpairs(decayed, rows, k=2)
    np.testing.assert_allclose(eigs.eigenvalue, landscape.top_eigenpairs(plain, rows, k=2).eigenvalue + 0.3, rtol=1e-3)
    plane = landscape.plane_slice(decayed, rows.sel(step=1), eigs.sel(step=1), half_width=0.5, n_points=3)
    corner = torch.from_numpy(plane.center.values + 0.5 * plane.direction.values.sum(0))
    np.testing.assert_allclose(plane.loss[2, 2], decayed.loss(corner))
    assert eigs.attrs["weight_decay"] == plane.attrs["weight_decay"] == 0.3
    assert "weight_decay" not in landscape.top_eigenpairs(plain, rows, k=1).attrs


def test_weight_decay_is_no_class_term():
    data, model = dynloss.spiral(10, 3, seed=0), dynloss.mlp(2, width=5, n_classes=3, seed=0)
    decayed = Objective(model, dynloss.CrossEntropy(3), data.inputs, data.targets, weight_decay=0.1)
    rows = xr.Dataset({"params": ("param", decayed.layout.flatten_model(model).numpy())}, {"step": 0})
    with pytest.raises(ValueError, match="terms=True needs a loss with terms"):
        landscape.line_slice(decayed, rows, np.ones(decayed.n_params), half_width=1, n_points=3, terms=True)
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight_decay must be at least 0"):
            Objective(model, dynloss.CrossEntropy(3), data.inputs, data.targets, weight_decay=value)
    from dynloss.kernels.torch_kernels import NetworkObjective

    with pytest.raises(ValueError, match="closed forms hold no weight decay"):
        NetworkObjective(model, dynloss.CrossEntropy(3), data.inputs, data.targets, weight_decay=0.1)


class Silent(Language):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return super().forward(input_ids, attention_mask)


def bad(change):
    model, samples = language()
    whole = batches(samples, 5)
    return {
        "no labels": lambda: Objective(model, next_token, [{"input_ids": samples["input_ids"]}]).loss,
        "no tensor": lambda: Objective(model, None, [batch | {"text": ["a"] * 5} for batch in whole]).loss,
        "pairs": lambda: Objective(model, None, [(batch["input_ids"], batch["labels"]) for batch in whole]).loss,
        "tensors": lambda: Objective(model, None, samples["input_ids"], samples["labels"]),
        "no batches": lambda: Objective(model, next_token, samples),
        "accuracy": lambda: Objective(model, None, whole).accuracy,
        "gauss_newton": lambda: lambda theta: Objective(model, None, whole).gauss_newton(theta, 0),
        "no own loss": lambda: Objective(Silent(), None, whole).loss,
        "only ignored": lambda: Objective(model, next_token, [whole[0] | {"labels": torch.full((5, 6), -100)}]).loss,
    }[change]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no labels", r'batch 0 holds input_ids, but no labels; name the targets: targets="…"'),
        ("no tensor", "batch 0 holds text, which is no tensor; leave it out, or make it one"),
        ("pairs", "each batch must be a mapping, but batch 0 is tuple"),
        ("tensors", "computes its own loss needs an iterable of batches that are mappings"),
        ("no batches", "targets are missing; only an iterable of batches goes without"),
        ("accuracy", "accuracy needs the outputs of the model, but it computes its own loss; give a loss_fn"),
        ("gauss_newton", "this model computes its own loss; give a loss_fn"),
        ("no own loss", "computes no loss of its own: its answer, SimpleNamespace, has no scalar loss; give a loss_fn"),
        ("only ignored", "hold no samples, or only targets that are ignored"),
    ],
)
def test_bad_batches_are_refused_in_a_line(change, message):
    model, _ = language()
    theta = landscape.ParamLayout.of(model).flatten_model(model)
    with pytest.raises(ValueError, match=message) as caught:
        bad(change)()(theta)
    assert "\n" not in str(caught.value)
