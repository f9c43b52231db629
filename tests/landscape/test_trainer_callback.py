"""Runs that Hugging Face's Trainer trained, against what its loop did, which the tests note for themselves."""

import atexit
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

import landscape

NEEDED = "TRANSFORMERS OR ACCELERATE IS NOT INSTALLED: pip install '.[adapters]'"
transformers = pytest.importorskip("transformers", reason=NEEDED)
pytest.importorskip("accelerate", reason=NEEDED)

INPUTS = torch.linspace(-1, 1, 24).reshape(12, 2)
TARGETS = torch.sin(3 * INPUTS.sum(1, keepdim=True))

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory", "ignore:.*lr_scheduler.step"
)


class Regression(torch.nn.Module):
    """A small network that answers as models of transformers do, and notes θ and its loss."""

    def __init__(self, raises_at=-1, scale=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        self.raises_at, self.scale = raises_at, scale
        self.seen, self.losses = [], []

    def forward(self, inputs, labels):
        self.seen.append(torch.nn.utils.parameters_to_vector(self.parameters()).detach().clone())
        if len(self.seen) == self.raises_at:
            raise RuntimeError("a batch that cannot be read")
        outputs = self.net(inputs)
        loss = mse_loss(outputs, labels) * self.scale
        self.losses.append(loss.item())
        return {"loss": loss, "logits": outputs}


def trainer_of(model, folder, optimizers=(None, None), kind=transformers.Trainer, callbacks=None, data=None, **options):
    plain = {
        "per_device_train_batch_size": 12,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "optim": "sgd",
    }
    arguments = transformers.TrainingArguments(str(folder / "output"), **(plain | options))
    data = data or [{"inputs": x, "labels": y} for x, y in zip(INPUTS, TARGETS, strict=True)]
    trainer = kind(model, arguments, train_dataset=data, optimizers=optimizers, callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def train(model, folder, name="a.h5", recorder=None, resume=None, **options):
    trainer = trainer_of(model, folder, **options)
    trainer.add_callback(landscape.trainer_recorder(trainer, folder / name, **(recorder or {})))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def mean_squares(outputs, targets, step):
    return mse_loss(outputs, targets)


def test_params_are_the_models_bit_for_bit_and_losses_those_of_the_objective(tmp_path):
    model = Regression()
    trainer = train(model, tmp_path, recorder={"every": 3, "model": model.net}, num_train_epochs=7)
    assert "training_step" not in vars(trainer)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"
        np.testing.assert_array_equal(run.history.step, np.arange(7))
        np.testing.assert_array_equal(run.history.loss, np.float32(model.losses))
        np.testing.assert_array_equal(run.checkpoints.step, [0, 3, 6, 7])
        saved = run.checkpoints.params.values
        np.testing.assert_array_equal(saved[:3], torch.stack(model.seen[::3]).numpy())
        np.testing.assert_array_equal(saved[3], torch.nn.utils.parameters_to_vector(model.parameters()).detach())
        # The Trainer shuffles: the mean over the same samples, in another order.
        objective = landscape.Objective(model.net, mean_squares, INPUTS, TARGETS)
        losses = objective.losses(saved[:3], run.checkpoints.step.values[:3])
        np.testing.assert_allclose(run.history.loss.values[::3], losses, rtol=1e-6)
        attrs = {name: run.checkpoints.attrs[name] for name in ("optimizer", "learning_rate")}
        assert attrs == {"optimizer": "sgd", "learning_rate": 0.1}


def test_a_step_is_an_optimizer_step_with_the_mean_loss_of_what_it_accumulates(tmp_path):
    model = Regression()
    # 6 batches an epoch by 4: the second update of an epoch accumulates 2.
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 2}
    train(model, tmp_path, **options)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run.history.step, np.arange(4))
        groups = np.split(np.array(model.losses), [4, 6, 10])
        np.testing.assert_allclose(run.history.loss, [np.mean(group) for group in groups], rtol=1e-6)
        np.testing.assert_array_equal(run.checkpoints.params[:4], torch.stack(model.seen)[[0, 4, 6, 10]].numpy())


def test_the_loss_is_the_one_that_was_trained_where_compute_loss_is_ones_own(tmp_path):
    class Doubled(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return 2 * model(**inputs)["loss"]

    model = Regression()
    train(model, tmp_path, kind=Doubled, num_train_epochs=3)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run.history.loss, 2 * np.float32(model.losses))


def test_a_language_model_of_transformers_has_the_loss_of_its_tokens(tmp_path):
    tokens = torch.randint(0, 11, (6, 8), generator=torch.Generator().manual_seed(0))
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    config.bos_token_id = config.eos_token_id = 0
    model = transformers.GPT2LMHeadModel(config)
    # The Trainer divides by the number of labels, and the first one is never predicted.
    data = [{"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in tokens]
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "optim": "adamw_torch"}
    train(model, tmp_path, data=data, max_steps=4, **options)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.eval()

        def forward(self, tokens):
            return self.model(tokens, use_cache=False).logits

    def next_token(outputs, targets, step):
        return torch.nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    objective = landscape.Objective(Logits(), next_token, tokens, tokens)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.checkpoints.attrs["optimizer"] == "adam"  # AdamW without weight decay
        losses = [objective.loss(run.checkpoints.params.sel(step=t).values, t) for t in range(4)]
        np.testing.assert_allclose(run.history.loss, losses, rtol=1e-5)


def test_the_learning_rate_of_a_schedule_is_that_of_each_update_and_no_attribute(tmp_path):
    train(Regression(), tmp_path, lr_scheduler_type="linear", max_steps=4)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_allclose(run.history.learning_rate, 0.1 * (1 - np.arange(4) / 4))
        assert "learning_rate" not in run.checkpoints.attrs
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    halving = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    train(model, tmp_path, "b.h5", optimizers=(optimizer, halving), max_steps=3)
    with landscape.open_run(tmp_path / "b.h5") as run:
        np.testing.assert_array_equal(run.history.learning_rate, 0.2 * 0.5 ** np.arange(3))
        assert "learning_rate" not in run.checkpoints.attrs


def test_second_moments_are_recorded(tmp_path):
    model = Regression()
    trainer = train(model, tmp_path, recorder={"second_moment": True}, optim="adamw_torch", max_steps=3)
    state = trainer.optimizer.optimizer.state
    expected = torch.cat([state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()])
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert not run.checkpoints.second_moment[0].any()
        np.testing.assert_array_equal(run.checkpoints.second_moment[-1], expected.numpy())


def test_training_that_goes_on_from_a_checkpoint_goes_on_in_the_file(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    train(Regression(), tmp_path, "whole.h5", **options)
    with pytest.raises(RuntimeError, match="cannot be read"):
        train(Regression(raises_at=7), tmp_path, **options)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "interrupted"
        np.testing.assert_array_equal(run.history.step, np.arange(6))
    train(Regression(), tmp_path, resume=str(tmp_path / "output" / "checkpoint-4"), **options)
    with landscape.open_run(tmp_path / "a.h5") as run, landscape.open_run(tmp_path / "whole.h5") as undisturbed:
        assert run.status == "complete"
        assert run.history.load().identical(undisturbed.history.load())
        assert run.checkpoints.load().identical(undisturbed.checkpoints.load())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        train(Regression(), tmp_path, **options)


def test_a_process_that_ends_before_training_does_leaves_an_interrupted_run(tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise MemoryError

    trainer = trainer_of(Regression(), tmp_path, max_steps=9)
    trainer.add_callback(landscape.trainer_recorder(trainer, tmp_path / "a.h5"))
    trainer.add_callback(Ends())
    with pytest.raises(MemoryError):
        trainer.train()
    for function in at_exit:
        function()
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "interrupted"
        assert run.history.sizes["step"] == 3


def test_infinite_losses_are_a_diverged_run(tmp_path):
    train(Regression(scale=1e30), tmp_path, max_steps=5)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "diverged"
        assert np.isnan(run.history.loss[-1]) or np.isinf(run.history.loss[-1])


def test_where_the_best_model_is_loaded_in_the_end_the_last_params_are_left_out(tmp_path):
    class Rising(transformers.Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = {"eval_loss": float(self.state.global_step)}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    data = [{"inputs": x, "labels": y} for x, y in zip(INPUTS, TARGETS, strict=True)]

    def with_evaluation(*args, **kwargs):
        return Rising(*args, eval_dataset=data, **kwargs)

    model = Regression()
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    train(model, tmp_path, kind=with_evaluation, max_steps=4, **options)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"
        np.testing.assert_array_equal(run.checkpoints.step, np.arange(4))
        # The model is now the one after the first update.
        loaded = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        np.testing.assert_array_equal(run.checkpoints.params.sel(step=1), loaded)


def test_only_the_first_process_writes(tmp_path):
    trainer = trainer_of(Regression(), tmp_path, max_steps=2)
    recorder = landscape.trainer_recorder(trainer, tmp_path / "a.h5")
    assert isinstance(recorder, transformers.TrainerCallback)
    state = SimpleNamespace(is_world_process_zero=False, global_step=0)
    recorder.on_train_begin(trainer.args, state, None, model=trainer.model, optimizer=None)
    recorder.on_step_begin(trainer.args, state, None)
    recorder.on_step_end(trainer.args, state, None)
    assert not (tmp_path / "a.h5").exists()
