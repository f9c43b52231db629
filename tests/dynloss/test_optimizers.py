"""Each optimiser obeys its rule, read back from the file, and is that of torch.optim; its state is saved."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import NetworkObjective
from landscape import open_run

DATA, N_STEPS, SEED = dynloss.spiral(12, 3, seed=0), 40, 5
LOSS = dynloss.DynamicalSquaredError(3, amplitude=5, period=16, weighting="component")
RUNS = {
    "gd": {"optimizer": "gd", "learning_rate": 0.3},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.2, "batch_size": 10},
    "sgd of the whole": {"optimizer": "sgd", "learning_rate": 0.2, "batch_size": 36},
    "momentum": {"optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.8},
    "momentum with batches": {"optimizer": "momentum", "learning_rate": 0.05, "batch_size": 7},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 0.01, "alpha": 0.95, "epsilon": 1e-6},
    "rmsprop with batches": {"optimizer": "rmsprop", "learning_rate": 0.01, "batch_size": 10},
    "adam": {"optimizer": "adam", "learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-7},
    "adam with batches": {"optimizer": "adam", "learning_rate": 0.02, "batch_size": 10},
}


def run_of(path, **options):
    model = dynloss.mlp(2, 8, 3, seed=2)
    options = {"n_steps": N_STEPS, "checkpoint_every": 1, "seed": SEED} | options
    return dynloss.train(model, LOSS, DATA, record=path, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run with all its states, loaded."""
    folder, loaded = tmp_path_factory.mktemp("optimisers"), {}
    for name, options in RUNS.items():
        with open_run(run_of(folder / f"{name}.h5", **options)) as run:
            loaded[name] = SimpleNamespace(
                options=options, checkpoints=run.checkpoints.load(), history=run.history.load(), config=run.config
            )
    return loaded


def batch_of(step, options):
    """Inputs and targets of the mini-batch at `step`, or all."""
    if "batch_size" not in options:
        return DATA
    batch = dynloss.UniformSampler(36, options["batch_size"], seed=SEED)(step)
    return DATA.inputs[batch], DATA.targets[batch]


def loss_of(theta, step, inputs, targets):
    """DMSE2 of flat parameters in torch's elementary functions, with Γ by hand."""
    w, b, u, c = theta.split([16, 8, 24, 3])
    outputs = torch.relu(inputs @ w.reshape(8, 2).T + b) @ u.reshape(3, 8).T + c
    raw = np.ones(3)
    raw[step // 16 % 3] = 5 - abs(step % 16 - 8) / 2
    weights = torch.from_numpy(3 * raw / raw.sum())
    return ((outputs - torch.eye(3, dtype=torch.float64)[targets]) ** 2 * weights).sum() / len(targets)


def gradient_at(theta, step, options):
    leaf = torch.from_numpy(theta).requires_grad_()
    return torch.autograd.grad(loss_of(leaf, step, *batch_of(step, options)), leaf)[0].numpy()


def updates_by_numpy(gradients, optimizer, learning_rate, momentum=0.9, beta1=0.9, beta2=0.999, alpha=0.99, eps=1e-8):
    """θ_{t+1} − θ_t and the second moment after each gradient, from the rules in closed form: sums over the past."""
    updates, second_moments = [], []
    for t in range(len(gradients)):
        past, age = np.array(gradients[: t + 1]), np.arange(t, -1, -1)[:, None]
        if optimizer in ("gd", "sgd"):
            update, second = gradients[t], None
        elif optimizer == "momentum":
            update, second = (momentum**age * past).sum(0), None
        elif optimizer == "rmsprop":
            second = ((1 - alpha) * alpha**age * past**2).sum(0)
            update = gradients[t] / (np.sqrt(second) + eps)
        else:
            second = ((1 - beta2) * beta2**age * past**2).sum(0)
            mean = ((1 - beta1) * beta1**age * past).sum(0)
            update = mean / (1 - beta1 ** (t + 1)) / (np.sqrt(second / (1 - beta2 ** (t + 1))) + eps)
        updates.append(-learning_rate * update)
        second_moments.append(second)
    return np.array(updates), second_moments


def by_numpy(run):
    options = {"eps" if name == "epsilon" else name: value for name, value in run.options.items()}
    options.pop("batch_size", None)
    params = run.checkpoints.params.values
    gradients = [gradient_at(params[step], step, run.options) for step in range(N_STEPS)]
    return gradients, *updates_by_numpy(gradients, **options)


@pytest.mark.parametrize("name", RUNS)
def test_every_update_read_back_from_the_file_obeys_the_rule(runs, name):
    run = runs[name]
    params = run.checkpoints.params.values
    assert run.checkpoints.step.values.tolist() == list(range(N_STEPS + 1))
    gradients, updates, _ = by_numpy(run)
    np.testing.assert_allclose(params[1:], params[:-1] + updates, rtol=0, atol=1e-12 * np.abs(params).max())
    np.testing.assert_allclose(run.history.gradient_norm, np.linalg.norm(gradients, axis=1), rtol=1e-12)
    norms = np.linalg.norm(updates, axis=1)
    assert (norms > 1e-6).all()
    np.testing.assert_allclose(run.history.update_norm[1:], norms[:-1], rtol=1e-8)


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_of_a_row_is_over_all_samples_whatever_the_batch(runs, name):
    run = runs[name]
    params = run.checkpoints.params.values
    expected = [loss_of(torch.from_numpy(params[step]), step, *DATA) for step in range(N_STEPS)]
    np.testing.assert_allclose(run.history.loss, expected, rtol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_the_second_moment_is_saved_with_each_checkpoint_where_the_rule_has_one(runs, name):
    run = runs[name]
    if run.options["optimizer"] not in ("rmsprop", "adam"):
        assert set(run.checkpoints.data_vars) == {"params"}
        return
    assert set(run.checkpoints.data_vars) == {"params", "second_moment"}
    assert run.checkpoints.second_moment.dims == ("step", "param")
    _, _, expected = by_numpy(run)
    np.testing.assert_array_equal(run.checkpoints.second_moment[0], np.zeros(51))  # before any update
    np.testing.assert_allclose(run.checkpoints.second_moment[1:], expected, rtol=1e-11, atol=1e-14 * np.max(expected))


@pytest.mark.parametrize("name", RUNS)
def test_thirty_steps_of_training_are_those_of_torch(runs, name):
    run = runs[name]
    model = dynloss.mlp(2, 8, 3, seed=2)
    options = run.options
    learning_rate, eps = options["learning_rate"], options.get("epsilon", 1e-8)
    optimizer = {
        "gd": lambda p: torch.optim.SGD(p, lr=learning_rate),
        "sgd": lambda p: torch.optim.SGD(p, lr=learning_rate),
        "momentum": lambda p: torch.optim.SGD(p, lr=learning_rate, momentum=options.get("momentum", 0.9)),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=learning_rate, alpha=options.get("alpha", 0.99), eps=eps),
        "adam": lambda p: torch.optim.Adam(
            p, lr=learning_rate, betas=(options.get("beta1", 0.9), options.get("beta2", 0.999)), eps=eps
        ),
    }[options["optimizer"]](model.parameters())
    for step in range(30):
        theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        np.testing.assert_allclose(run.checkpoints.params[step], theta, rtol=0, atol=1e-10)
        optimizer.zero_grad()
        inputs, targets = batch_of(step, options)
        LOSS(model(inputs), targets, step).backward()
        optimizer.step()
    assert np.abs(run.checkpoints.params[30] - run.checkpoints.params[0]).max() > 0.01


def test_batches_make_other_runs_and_one_batch_of_all_samples_the_same(runs):
    whole, full = runs["sgd of the whole"], dict(RUNS["gd"], learning_rate=0.2)
    gradients = [gradient_at(theta, step, full) for step, theta in enumerate(whole.checkpoints.params.values[:-1])]
    np.testing.assert_allclose(whole.history.gradient_norm, np.linalg.norm(gradients, axis=1), rtol=1e-12)
    of_batches = runs["sgd"]
    differing = [
        abs(np.linalg.norm(gradient_at(theta, step, full)) / of_batches.history.gradient_norm.values[step] - 1)
        for step, theta in enumerate(of_batches.checkpoints.params.values[:-1])
    ]
    assert np.median(differing) > 0.01


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_and_config_name_the_optimiser_and_its_own_settings_only(runs, name):
    run = runs[name]
    attrs, options = run.checkpoints.attrs, run.options
    defaults = {
        "momentum": {"momentum": 0.9},
        "rmsprop": {"alpha": 0.99, "epsilon": 1e-8},
        "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    }.get(options["optimizer"], {})
    given = {key: value for key, value in options.items() if key != "batch_size"}
    known = {"optimizer", "learning_rate", "momentum", "alpha", "beta1", "beta2", "epsilon"}
    assert {key: attrs[key] for key in attrs.keys() & known} == defaults | given
    assert options.items() <= run.config["training"].items()
    assert run.config.get("sampler", {}).get("batch_size") == options.get("batch_size")


def test_a_sampler_of_ones_own_chooses_the_batches(tmp_path):
    batches = [[0], [1, 1, 35], [20, 3, 4, 5]]
    options = {"optimizer": "sgd", "learning_rate": 0.1, "n_steps": 3}
    with open_run(run_of(tmp_path / "a.h5", sampler=lambda step: batches[step], **options)) as run:
        params = run.checkpoints.params.values
        assert run.config["sampler"] == {"name": "function"}
    for step, batch in enumerate(batches):
        leaf = torch.from_numpy(params[step]).requires_grad_()
        loss = loss_of(leaf, step, DATA.inputs[batch], DATA.targets[batch])
        (gradient,) = torch.autograd.grad(loss, leaf)
        np.testing.assert_allclose(params[step + 1], params[step] - 0.1 * gradient.numpy(), rtol=0, atol=1e-14)


def test_batches_that_oscillate_are_those_of_the_sampler_and_their_period_is_recorded(tmp_path):
    sampler = dynloss.OscillatingSampler(DATA.targets, 9, dynloss.SineSchedule(3, 20, 12), seed=1)
    model, options = dynloss.mlp(2, 8, 3, seed=2), {"optimizer": "sgd", "learning_rate": 0.1, "n_steps": 15}
    path = dynloss.train(
        model, dynloss.CrossEntropy(3), DATA, sampler=sampler, record=tmp_path / "a.h5", checkpoint_every=1, **options
    )
    with open_run(path) as run:
        params, attrs = run.checkpoints.params.values, run.checkpoints.attrs
        assert (attrs["period"], attrs["amplitude"]) == (12, 20)
        assert run.config["sampler"] == sampler.config()
        assert (run.history.class_weight == 1).all()  # the loss is static
    for step in range(15):
        batch = sampler(step)
        theta = torch.from_numpy(params[step]).requires_grad_()
        w, b, u, c = theta.split([16, 8, 24, 3])
        outputs = torch.relu(DATA.inputs[batch] @ w.reshape(8, 2).T + b) @ u.reshape(3, 8).T + c
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, DATA.targets[batch]), theta)
        np.testing.assert_allclose(params[step + 1], params[step] - 0.1 * gradient.numpy(), rtol=0, atol=1e-14)


class Stop(Exception):
    """What a bug or Ctrl-C does to a run."""


def interrupt(path, monkeypatch, at, **options):
    gradient = NetworkObjective.value_and_gradient

    def failing(self, params, step):
        if step == at:
            raise Stop
        return gradient(self, params, step)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkObjective, "value_and_gradient", failing)
        with pytest.raises(Stop):
            run_of(path, **options)


RESUMED = ["sgd", "momentum with batches", "rmsprop with batches", "adam", "adam with batches"]
LONGER = {"n_steps": 85, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: run_of(folder / f"{name}.h5", **RUNS[name] | LONGER) for name in RESUMED}


# States are saved at steps 0 and 64; step 79 ends an epoch of four batches.
@pytest.mark.parametrize(("name", "at"), [*((name, 79) for name in RESUMED), *((RESUMED[-1], at) for at in (30, 64))])
def test_an_interrupted_run_resumes_to_the_same_bits_with_its_optimiser_s_state(
    undisturbed, tmp_path, monkeypatch, name, at
):
    interrupt(tmp_path / "a.h5", monkeypatch, at, **RUNS[name] | LONGER)
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.step.values.tolist() == list(range(at))
    run_of(tmp_path / "a.h5", resume=True, **RUNS[name] | LONGER)
    with open_run(tmp_path / "a.h5") as resumed, open_run(undisturbed[name]) as expected:
        assert resumed.status == "complete"
        assert resumed.history.identical(expected.history)
        assert resumed.checkpoints.identical(expected.checkpoints)


def oscillating(seed=0, amplitude=20):
    return dynloss.OscillatingSampler(DATA.targets, 9, dynloss.TriangleSchedule(3, amplitude, 12), seed=seed)


@pytest.mark.parametrize(
    ("begun", "resumed", "message"),
    [
        (RUNS["adam"], RUNS["adam"] | {"beta1": 0.7}, r"its beta1 is 0\.8, not 0\.7"),
        (RUNS["adam"], RUNS["adam"] | {"batch_size": 9}, "its batch_size is None, not 9"),
        (RUNS["sgd"], RUNS["sgd"] | {"batch_size": 12}, "its batch_size is 10, not 12"),
        ({"sampler": oscillating()}, {"sampler": oscillating(seed=1)}, "its seed is 0, not 1"),
        ({"sampler": oscillating()}, {"sampler": oscillating(amplitude=7)}, "its amplitude is 20, not 7"),
        ({"sampler": oscillating()}, {"batch_size": 9}, "its name is oscillating, not uniform"),
        ({"sampler": dynloss.UniformSampler(36, 9)}, {}, "its sampler is .*uniform.*, not None"),
        ({}, {"sampler": dynloss.UniformSampler(36, 9)}, "its sampler is None, not .*uniform"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_of_another_optimiser_or_other_batches_is_not_resumed(tmp_path, monkeypatch, begun, resumed, message):
    options = {"optimizer": "momentum", "learning_rate": 0.01, "n_steps": 20}
    interrupt(tmp_path / "a.h5", monkeypatch, 10, **options | begun)
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(ValueError, match=rf"a\.h5 holds another run, .*{message}"):
        run_of(tmp_path / "a.h5", resume=True, **options | resumed)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_a_model_of_another_kind_is_trained_by_the_same_rules(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    start = [p.detach().clone() for p in model.parameters()]
    options = {"optimizer": "adam", "learning_rate": 0.02, "batch_size": 8, "n_steps": 30, "seed": 4}
    loss = dynloss.DynamicalCrossEntropy(3, 9, 10)
    with open_run(dynloss.train(model, loss, DATA, record=tmp_path / "a.h5", **options)) as run:
        assert run.checkpoints.attrs["kernel"] == "autograd"
    found = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    with torch.no_grad():
        for p, before in zip(model.parameters(), start, strict=True):
            p.copy_(before)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    sampler = dynloss.UniformSampler(36, 8, seed=4)
    for step in range(30):
        optimizer.zero_grad()
        batch = sampler(step)
        each = torch.nn.functional.cross_entropy(model(DATA.inputs[batch]), DATA.targets[batch], reduction="none")
        (loss.class_weights(step)[DATA.targets[batch]] * each).mean().backward()
        optimizer.step()
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["momentum", "rmsprop with batches", "adam"])
def test_a_float32_model_keeps_its_type_and_so_does_the_saved_state(tmp_path, name):
    model = dynloss.mlp(2, 8, 3, dtype=torch.float32)
    path = dynloss.train(model, LOSS, DATA, record=tmp_path / "a.h5", n_steps=5, **RUNS[name])
    with open_run(path) as run:
        assert {variable.dtype for variable in run.checkpoints.data_vars.values()} == {np.dtype("float32")}
        np.testing.assert_array_equal(
            run.checkpoints.params[-1], torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        )
