"""Models of Hugging Face as they are: their own loss over padded batches, in full precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

from landscape import Objective, read_state_dicts, top_eigenpairs

transformers = pytest.importorskip("transformers")
IGNORED = -100


@pytest.fixture(scope="module")
def causal():
    """A small GPT-2 in float64 and ten texts of different lengths."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "n_positions": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    words = torch.randint(23, (10, 9))
    labels = words.clone()
    for row, length in enumerate((9, 9, 4, 9, 3, 6, 2, 9, 5, 7)):
        labels[row, length:] = IGNORED
    return model, {"input_ids": words, "attention_mask": (labels != IGNORED).long(), "labels": labels}


def batches(samples, size):
    return [{name: part[i : i + size] for name, part in samples.items()} for i in range(0, 10, size)]


def test_a_causal_model_has_the_loss_of_all_its_tokens(causal):
    model, samples = causal
    inputs = {name: samples[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), samples["labels"][:, 1:].flatten())
    for size in (10, 4):
        objective = Objective(model, None, batches(samples, size))
        theta = objective.layout.flatten_model(model)
        torch.testing.assert_close(objective.loss(theta), expected, rtol=1e-12, atol=0)
    rows = xr.Dataset({"params": (("step", "param"), theta[None].numpy())}, {"step": [0]})
    own = top_eigenpairs(objective, rows, k=2, tol=1e-6)

    def loss_fn(outputs, targets, step):
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    by_hand = Objective(model, loss_fn, batches(samples, 4))
    assert own.certified.all()
    np.testing.assert_allclose(own.eigenvalue, top_eigenpairs(by_hand, rows, k=2, tol=1e-6).eigenvalue, rtol=1e-6)


def test_a_classifier_and_its_saved_folder(causal, tmp_path):
    _, samples = causal
    torch.manual_seed(1)
    sizes = {"vocab_size": 23, "max_position_embeddings": 9, "hidden_size": 8, "intermediate_size": 8}
    config = transformers.BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
    model = transformers.BertForSequenceClassification(config).eval()
    labelled = samples | {"labels": torch.randint(3, (10,))}
    model.save_pretrained(tmp_path / "checkpoint-7")
    objective = Objective(model, None, batches(labelled, 4), dtype=torch.float64)
    checkpoints = read_state_dicts(tmp_path / "checkpoint-7", objective.layout)
    assert checkpoints.step.values.tolist() == [7]
    np.testing.assert_array_equal(checkpoints.params[0], objective.layout.flatten_model(model))
    with torch.no_grad():
        expected = model.double()(**labelled).loss
    torch.testing.assert_close(objective.losses(checkpoints.params.values, 7)[0], expected, rtol=1e-6, atol=0)
    model.float()
