"""Runs that Lightning trained, against what its loop did, which the tests note for themselves."""

import importlib
import importlib.util
import logging
import signal
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

import landscape

pytest.importorskip("pytorch_lightning", reason="LIGHTNING IS NOT INSTALLED: pip install '.[adapters]'")
PACKAGES = [
    pytest.param(importlib.import_module(name), id=name)
    for name in ("lightning.pytorch", "pytorch_lightning")
    if importlib.util.find_spec(name.split(".")[0])
]
PLAIN = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
INPUTS = torch.linspace(-1, 1, 24).reshape(12, 2)
TARGETS = torch.sin(3 * INPUTS.sum(1, keepdim=True))

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|does not have many workers|smaller than the logging interval|tensorboard)",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:`isinstance.treespec, LeafSpec.`",
)


@pytest.fixture(params=PACKAGES)
def lightning(request, monkeypatch):
    logging.getLogger(request.param.__name__.split(".")[0]).setLevel(logging.ERROR)
    monkeypatch.setattr("landscape.lightning_callback.PACKAGES", (request.param.__name__,))
    return request.param


def module(lightning, optimizers=None, **behaviour):
    """A small regression that notes θ before each batch and the learning rate of each update."""

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
            self.seen, self.losses = [], []
            for name, value in behaviour.items():
                setattr(self, name, value)

        def training_step(self, batch, batch_idx):
            self.seen.append(torch.nn.utils.parameters_to_vector(self.parameters()).detach().clone())
            if len(self.seen) == getattr(self, "raises_at", -1):
                raise RuntimeError("a batch that cannot be read")
            if len(self.seen) == getattr(self, "breaks_at", -1):
                raise KeyboardInterrupt
            loss = mse_loss(self.net(batch[0]), batch[1]) * getattr(self, "scale", 1.0)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return (optimizers or sgd)(self.parameters())

    return Regression()


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def loader(batch_size=12):
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    return torch.utils.data.DataLoader(data, batch_size=batch_size)


def fit(lightning, module, recorder, batch_size=12, ckpt_path=None, **options):
    trainer = lightning.Trainer(callbacks=[recorder, *options.pop("callbacks", ())], **(PLAIN | options))
    trainer.fit(module, loader(batch_size), ckpt_path=ckpt_path)
    return trainer


def test_params_are_the_models_bit_for_bit_and_losses_those_of_the_objective(lightning, tmp_path):
    trained = module(lightning)
    recorder = landscape.lightning_recorder(tmp_path / "a.h5", every=3, model=trained.net)
    assert isinstance(recorder, lightning.Callback)
    fit(lightning, trained, recorder, max_epochs=7)
    objective = landscape.Objective(
        trained.net, lambda outputs, targets, step: mse_loss(outputs, targets), INPUTS, TARGETS
    )
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"
        np.testing.assert_array_equal(run.history.step, np.arange(7))
        np.testing.assert_array_equal(run.history.loss, np.float32(trained.losses))
        np.testing.assert_array_equal(run.checkpoints.step, [0, 3, 6, 7])
        saved = run.checkpoints.params.values
        assert saved.dtype == np.float32
        np.testing.assert_array_equal(saved[:3], torch.stack(trained.seen[::3]).numpy())
        np.testing.assert_array_equal(saved[3], objective.layout.flatten_model(trained.net).numpy())
        assert run.checkpoints.attrs["layout"] == objective.layout.to_json()
        losses = objective.losses(saved[:3], run.checkpoints.step.values[:3])
        np.testing.assert_allclose(run.history.loss.values[::3], losses, rtol=1e-6)
        attrs = {name: run.checkpoints.attrs[name] for name in ("optimizer", "learning_rate", "momentum")}
        assert attrs == {"optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.9}


def test_a_step_is_an_optimizer_step_with_the_mean_loss_of_what_it_accumulates(lightning, tmp_path):
    trained = module(lightning)
    # 6 batches an epoch by 4: the second update of an epoch accumulates 2.
    fit(lightning, trained, landscape.lightning_recorder(tmp_path / "a.h5"), 2, max_epochs=2, accumulate_grad_batches=4)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run.history.step, np.arange(4))
        groups = np.split(np.array(trained.losses), [4, 6, 10])
        np.testing.assert_allclose(run.history.loss, [np.mean(group) for group in groups], rtol=1e-6)
        np.testing.assert_array_equal(run.checkpoints.params[:4], torch.stack(trained.seen)[[0, 4, 6, 10]].numpy())


def test_the_learning_rate_of_a_schedule_is_that_of_each_update_and_no_attribute(lightning, tmp_path):
    def scheduled(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        halving = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
        return [optimizer], [{"scheduler": halving, "interval": "step"}]

    recorder = landscape.lightning_recorder(tmp_path / "a.h5", every=2, attrs={"note": "halved"})
    fit(lightning, module(lightning, scheduled), recorder, max_epochs=4)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run.history.learning_rate, 0.1 * 0.5 ** np.arange(4))
        assert run.checkpoints.attrs["optimizer"] == "sgd"
        assert run.checkpoints.attrs["note"] == "halved"
        assert "learning_rate" not in run.checkpoints.attrs


def test_second_moments_are_recorded_and_their_preconditioned_sharpness_has_a_threshold(lightning, tmp_path):
    trained = module(lightning, lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.8, 0.9)))
    recorder = landscape.lightning_recorder(tmp_path / "a.h5", every=2, second_moment=True, model=trained.net)
    trainer = fit(lightning, trained, recorder, max_epochs=4)
    state = trainer.optimizers[0].state
    expected = torch.cat([state[p]["exp_avg_sq"].reshape(-1) for p in trained.parameters()])
    objective = landscape.Objective(
        trained.net, lambda outputs, targets, step: mse_loss(outputs, targets), INPUTS, TARGETS
    )
    with landscape.open_run(tmp_path / "a.h5") as run:
        moments = run.checkpoints.second_moment.values
        assert not moments[0].any()
        np.testing.assert_array_equal(moments[-1], expected.numpy())
        eigs = landscape.top_eigenpairs(objective, run.checkpoints.isel(step=[1]), k=1, preconditioned=True)
        np.testing.assert_allclose(eigs.threshold, 3.6 / (0.2 * 0.01) * (1 - 0.8**3))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_weights_of_half_precision_are_held_exactly_by_float32_and_double_ones_by_float64(
    lightning, tmp_path, precision
):
    trained = module(lightning)
    recorder = landscape.lightning_recorder(tmp_path / "a.h5")
    fit(lightning, trained, recorder, max_epochs=3, precision=precision)
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert trained.seen[0].dtype == {"bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}.get(precision, kind)
    with landscape.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run.checkpoints.params[:3], torch.stack(trained.seen).to(kind).numpy())
        assert run.checkpoints.params.dtype == str(kind).removeprefix("torch.")


def test_training_that_goes_on_from_a_checkpoint_goes_on_in_the_file(lightning, tmp_path):
    whole, first, second = (module(lightning) for _ in range(3))
    fit(lightning, whole, landscape.lightning_recorder(tmp_path / "whole.h5"), max_epochs=8)
    first.raises_at = 7  # after the checkpoint of step 6

    def to_the_end(module, **more):
        saving = lightning.callbacks.ModelCheckpoint(
            tmp_path / "saved", filename="at_{step}", every_n_epochs=2, save_top_k=-1
        )
        recorder = landscape.lightning_recorder(tmp_path / "a.h5")
        fit(lightning, module, recorder, max_epochs=8, callbacks=[saving], enable_checkpointing=True, **more)

    with pytest.raises(RuntimeError, match="cannot be read"):
        to_the_end(first)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "interrupted"
        np.testing.assert_array_equal(run.history.step, np.arange(6))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
        to_the_end(second, ckpt_path=tmp_path / "saved" / "at_step=4.ckpt")
    with landscape.open_run(tmp_path / "a.h5") as run, landscape.open_run(tmp_path / "whole.h5") as undisturbed:
        assert run.status == "complete"
        assert run.history.load().identical(undisturbed.history.load())
        assert run.checkpoints.load().identical(undisturbed.checkpoints.load())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fit(lightning, module(lightning), landscape.lightning_recorder(tmp_path / "a.h5"), max_epochs=1)
    fit(lightning, module(lightning), landscape.lightning_recorder(tmp_path / "a.h5", overwrite=True), max_epochs=1)
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.history.sizes["step"] == 1


def test_ctrl_c_leaves_an_interrupted_run_and_infinite_losses_a_diverged_one(lightning, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(
                lightning, module(lightning, breaks_at=3), landscape.lightning_recorder(tmp_path / "a.h5"), max_epochs=9
            )
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    with landscape.open_run(tmp_path / "a.h5") as run:
        assert run.status == "interrupted"
        assert run.history.sizes["step"] == 2
    wild = module(lightning, scale=1e30)
    fit(lightning, wild, landscape.lightning_recorder(tmp_path / "b.h5"), max_epochs=5)
    with landscape.open_run(tmp_path / "b.h5") as run:
        assert run.status == "diverged"
        assert run.history.sizes["step"] == 5


def test_what_cannot_be_recorded_is_refused_in_one_line_before_training(lightning, tmp_path):
    def two(params):
        first, *rest = params
        return [torch.optim.SGD([first], lr=0.1), torch.optim.SGD(rest, lr=0.1)]

    by_hand = module(lightning, two, automatic_optimization=False)
    wrong = {"manual": by_hand, "L-BFGS": module(lightning, torch.optim.LBFGS)}
    for words, trained in wrong.items():
        with pytest.raises(ValueError, match=words) as error:
            fit(lightning, trained, landscape.lightning_recorder(tmp_path / "a.h5"), max_epochs=1)
        assert "\n" not in str(error.value)
        assert not trained.seen
    with pytest.raises(ValueError, match="keeps no second moment"):
        fit(
            lightning,
            module(lightning),
            landscape.lightning_recorder(tmp_path / "a.h5", second_moment=True),
            max_epochs=1,
        )
    sharded = module(lightning)
    sharded.net[0].weight.ds_id = 0
    with pytest.raises(ValueError, match="sharded"):
        fit(lightning, sharded, landscape.lightning_recorder(tmp_path / "a.h5"), max_epochs=1)
    assert not (tmp_path / "a.h5").exists()
    for options in ({"every": 0}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            landscape.lightning_recorder(tmp_path / "a.h5", **options)


def test_several_optimizers_are_refused(lightning, tmp_path):
    recorder = landscape.lightning_recorder(tmp_path / "a.h5")
    trainer = lightning.Trainer(**PLAIN)
    trainer.optimizers = [sgd([torch.nn.Parameter(torch.zeros(1))]) for _ in range(2)]
    with pytest.raises(ValueError, match="this module has 2"):
        recorder.on_train_start(trainer, module(lightning))


def test_only_the_first_process_writes(lightning, tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", property(lambda trainer: False))
    trained = module(lightning)
    fit(lightning, trained, landscape.lightning_recorder(tmp_path / "a.h5"), max_epochs=3)
    assert len(trained.losses) == 3
    assert not list(tmp_path.iterdir())
