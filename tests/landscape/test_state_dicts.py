"""Checkpoints that others saved: every kind of file gives the same rows, and bad ones are named in a line."""

import json
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from landscape import (
    Objective,
    ParamLayout,
    load_dataset,
    open_run,
    read_state_dicts,
    top_eigenpairs,
    verify,
)
from landscape.__main__ import main


class Model(torch.nn.Module):
    """A model with a tied weight, a batch norm with buffers, and a frozen parameter."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
        self.second, self.third = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.third.bias.requires_grad_(False)

    def forward(self, inputs):
        return self.third(torch.tanh(self.second(self.norm(self.first(inputs)))))


def trained(seed):
    """A model whose batch norm has seen data of its own, in evaluation mode."""
    model = Model(seed).train()
    model((seed + 1) * torch.randn(50, 4))
    return model.eval()


MODELS = [trained(seed) for seed in range(3)]
LAYOUT = ParamLayout.of(MODELS[0])
STATISTICS = np.stack([ParamLayout.of_buffers(model).flatten_model(model).numpy() for model in MODELS])
EXPECTED = np.stack([LAYOUT.flatten_model(model).numpy() for model in MODELS])
STEPS = [10, 200, 3000]


def lightning(state, path):
    torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 3, "optimizer_states": []}, path)


def sharded(state, path, suffix, save):
    path.mkdir()
    names = list(state)
    places = {}
    for i in range(2):
        shard = f"part-{i}{suffix}"
        save({name: state[name] for name in names[i::2]}, path / shard)
        places |= dict.fromkeys(names[i::2], shard)
    index = "model.safetensors.index.json" if suffix == ".safetensors" else "pytorch_model.bin.index.json"
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def whole_folder(state, path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    torch.save(state, path / "pytorch_model.bin")


def untied(state):
    """Safetensors does not store what shares memory."""
    return {name: tensor.clone() for name, tensor in state.items()}


def before_2020(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


KINDS = {
    "pt": ("step_{}.pt", torch.save),
    "pth, of before 2020": (
        "step{}.pth",
        before_2020,
    ),
    "bin": ("weights-{}.bin", torch.save),
    "safetensors": ("model_{}.safetensors", lambda state, path: save_file(untied(state), path)),
    "Lightning": ("epoch=7-step={}.ckpt", lightning),
    "beside the optimiser": ("iter_{}.pt", lambda state, path: torch.save({"model": state, "lr": 0.1}, path)),
    "Hugging Face": ("checkpoint-{}", whole_folder),
    "shards of torch": ("checkpoint-{}", lambda state, path: sharded(state, path, ".bin", torch.save)),
    "shards of safetensors": (
        "checkpoint-{}",
        lambda state, path: sharded(untied(state), path, ".safetensors", lambda part, to: save_file(part, to)),
    ),
}


def saved(folder, kind="pt", models=MODELS):
    name, save = KINDS[kind]
    paths = [folder / name.format(step) for step in STEPS]
    for model, path in zip(models, paths, strict=True):
        save(model.state_dict(), path)
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    saved(tmp_path, kind)
    checkpoints = read_state_dicts(tmp_path, LAYOUT)
    assert checkpoints.step.values.tolist() == STEPS
    assert checkpoints.params.dtype == np.float32
    np.testing.assert_array_equal(checkpoints.params, EXPECTED)
    np.testing.assert_array_equal(checkpoints.params.sel(step=200), EXPECTED[1])
    np.testing.assert_array_equal(checkpoints.params[::2, [3, 1]], EXPECTED[::2, [3, 1]])
    assert checkpoints.attrs["prefix"] == ("model." if kind == "Lightning" else "")
    np.testing.assert_array_equal(checkpoints.buffers, STATISTICS)
    assert ParamLayout.from_json(checkpoints.attrs["buffer_layout"]) == ParamLayout.of_buffers(MODELS[0])
    unused = {name.removeprefix("model.") for name in checkpoints.attrs["unused"]}
    assert {"norm.num_batches_tracked", "third.bias"} <= unused <= {*MODELS[0].state_dict()}
    assert not any("running" in name for name in unused)


def test_sources_are_mappings_patterns_lists_and_single_files(tmp_path):
    paths = saved(tmp_path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    for source in (dict(zip(STEPS, paths, strict=True)), str(tmp_path / "step_*.pt"), paths[::-1]):
        np.testing.assert_array_equal(read_state_dicts(source, LAYOUT).params, EXPECTED)
    assert read_state_dicts({7: paths[1]}, LAYOUT).step.values.tolist() == [7]
    assert read_state_dicts(paths[2], LAYOUT).step.values.tolist() == [3000]
    unnumbered = paths[0].rename(tmp_path / "final.pt")
    assert read_state_dicts(unnumbered, LAYOUT).step.values.tolist() == [0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod."])
def test_a_prefix_that_all_names_share_is_taken_off_and_said(tmp_path, prefix):
    path = tmp_path / "step_1.pt"
    torch.save({prefix + name: tensor for name, tensor in MODELS[0].state_dict().items()}, path)
    checkpoints = read_state_dicts(path, LAYOUT)
    np.testing.assert_array_equal(checkpoints.params[0], EXPECTED[0])
    assert checkpoints.attrs["prefix"] == prefix


def test_a_prefix_of_the_model_itself_stays(tmp_path):
    model = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    checkpoints = read_state_dicts(tmp_path / "a.pt", ParamLayout.of(model))
    assert checkpoints.attrs["prefix"] == ""


def test_averaged_weights_are_read_where_they_are_asked_for(tmp_path):
    path = tmp_path / "step_1.pt"
    torch.save({"model": MODELS[0].state_dict(), "ema": MODELS[1].state_dict()}, path)
    for weights, row in (("raw", 0), ("ema", 1)):
        np.testing.assert_array_equal(read_state_dicts(path, LAYOUT, weights=weights).params[0], EXPECTED[row])
    torch.save(MODELS[0].state_dict(), path)
    with pytest.raises(ValueError, match=r'holds no averaged weights .*; use weights="raw"'):
        read_state_dicts(path, LAYOUT, weights="ema")


def test_files_that_lack_statistics_are_named_one_by_one(tmp_path):
    paths = saved(tmp_path)
    state = {name: t for name, t in MODELS[1].state_dict().items() if name != "norm.running_mean"}
    torch.save(state | {"norm.running_var": torch.ones(5)}, paths[1])
    with pytest.raises(ValueError, match=r"2 of 2 buffers: norm\.running_mean is missing.*norm\.running_var has shape"):
        read_state_dicts(tmp_path, LAYOUT)
    empty = ParamLayout((), ())
    assert "buffers" not in read_state_dicts(tmp_path, LAYOUT, buffers=empty)


def test_analyses_are_those_of_the_same_rows_in_memory(tmp_path):
    saved(tmp_path)
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 4), torch.randint(3, (20,))
    objective = Objective(MODELS[0], lambda o, t, step: torch.nn.functional.cross_entropy(o, t), inputs, targets)
    in_memory = xr.Dataset(
        {"params": (("step", "param"), EXPECTED), "buffers": (("step", "buffer"), STATISTICS)},
        {"step": STEPS},
        {"buffer_layout": ParamLayout.of_buffers(MODELS[0]).to_json()},
    )
    lazy = top_eigenpairs(objective, read_state_dicts(tmp_path, objective.layout), k=2)
    np.testing.assert_array_equal(lazy.eigenvalue, top_eigenpairs(objective, in_memory, k=2).eigenvalue)


def test_the_dataset_travels_to_other_processes_and_reads_a_row_at_a_time(tmp_path, monkeypatch):
    saved(tmp_path)
    sent = pickle.loads(pickle.dumps(read_state_dicts(tmp_path, LAYOUT)))
    read = []
    monkeypatch.setattr(
        "landscape.state_dicts.read_tensors", lambda path, weights: read.append(path.name) or torch.load(path)
    )
    np.testing.assert_array_equal(sent.params.isel(step=1), EXPECTED[1])
    assert read == ["step_200.pt"]


def test_types_are_as_wide_as_the_file_has_them_or_as_asked(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({name: tensor.double() for name, tensor in MODELS[0].state_dict().items()}, path)
    assert read_state_dicts(path, LAYOUT).params.dtype == np.float64
    assert read_state_dicts(path, LAYOUT, dtype="float32").params.dtype == np.float32
    torch.save({name: tensor.bfloat16() for name, tensor in MODELS[0].state_dict().items()}, path)
    half = read_state_dicts(path, LAYOUT).params
    assert half.dtype == np.float32
    np.testing.assert_allclose(half[0], EXPECTED[0], rtol=2**-7)


def test_parameters_that_require_gradients_are_read_as_they_are(tmp_path):
    path = tmp_path / "step_1.pt"
    torch.save(dict(MODELS[0].named_parameters()), path)
    np.testing.assert_array_equal(read_state_dicts(path, LAYOUT).params[0], EXPECTED[0])


class Malicious:
    def __reduce__(self):
        return (print, ("run!",))


def script(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


BAD = {
    "holds Python objects other than tensors; reading them could run code": lambda path: torch.save(
        {"state_dict": MODELS[0].state_dict(), "hparams": Malicious()}, path
    ),
    "other than tensors": lambda path: path.write_bytes(pickle.dumps(Malicious())),
    "is a TorchScript program, which is refused": script,
    "is empty; was it written to the end": lambda path: path.write_bytes(b""),
    "is it cut off|or is cut off|no checkpoint that torch.save wrote": lambda path: (
        torch.save(MODELS[0].state_dict(), path),
        path.write_bytes(path.read_bytes()[:500]),
    ),
    "no checkpoint that torch.save wrote": lambda path: path.write_text("a text"),
    "holds a Tensor, not a state dict": lambda path: torch.save(torch.zeros(3), path),
    "holds lr, and no state dict that we know": lambda path: torch.save({"lr": 0.1}, path),
    r"6 of 6 .*first\.weight is missing \(the nearest name is erst\.weight\)": lambda path: torch.save(
        {name.replace("first", "erst").replace("second", "zweit").replace("third", "dritt").replace("norm", "gleich"): t
         for name, t in MODELS[0].state_dict().items()}, path
    ),
    r"1 of 6 parameters: first\.bias has shape \(5,\), not \(4,\)": lambda path: torch.save(
        MODELS[0].state_dict() | {"first.bias": torch.zeros(5)}, path
    ),
    r"first\.bias is torch\.int64, not floating-point": lambda path: torch.save(
        MODELS[0].state_dict() | {"first.bias": torch.zeros(4, dtype=torch.int64)}, path
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*TorchScript.*:UserWarning")
@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused_in_a_line_and_run_nothing(message, tmp_path, capsys):
    path = tmp_path / "step_1.pt"
    BAD[message](path)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dicts(path, LAYOUT)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "run!" not in capsys.readouterr().out


def test_bad_safetensors_and_shards_are_named(tmp_path):
    path = tmp_path / "step_1.safetensors"
    save_file(untied(MODELS[0].state_dict()), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_state_dicts(path, LAYOUT)
    folder = tmp_path / "checkpoint-1"
    sharded(MODELS[0].state_dict(), folder, ".bin", torch.save)
    (folder / "part-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*part-1\.bin"):
        read_state_dicts(folder, LAYOUT)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "../outside.bin"}}')
    with pytest.raises(ValueError, match="names a shard outside its folder"):
        read_state_dicts(folder, LAYOUT)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no list of shards"):
        read_state_dicts(folder, LAYOUT)


def test_sources_without_files_or_steps_are_refused(tmp_path):
    paths = saved(tmp_path)
    for source, kind, message in (
        (tmp_path / "no.pt", FileNotFoundError, "no file matches"),
        (str(tmp_path / "*.bin"), FileNotFoundError, "no file matches"),
        ({}, FileNotFoundError, "the mapping of steps to files is empty"),
        ([*paths, paths[0]], ValueError, "step 10 is in several names"),
        ([paths[0], tmp_path / "final.pt"], ValueError, "tells no step"),
    ):
        with pytest.raises(kind, match=message):
            read_state_dicts(source, LAYOUT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        read_state_dicts(tmp_path / "empty", LAYOUT)
    for options in ({"weights": "best"}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match="must be"):
            read_state_dicts(paths[0], LAYOUT, **options)


@pytest.mark.parametrize("kind", ["pt", "Lightning", "shards of safetensors"])
def test_inspect_lists_steps_and_tensors(kind, tmp_path, capsys):
    saved(tmp_path, kind)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 checkpoints, ")
    assert "3 rows: every 190 from 10 to 200, every 2800 to 3000" in text
    assert "norm.running_var" in text
    assert ("prefix" in text) == (kind == "Lightning")
    assert "different" not in text


def test_inspect_names_files_that_differ_and_refuses_bad_ones_in_a_line(tmp_path, capsys):
    first, second, third = saved(tmp_path)
    torch.save(MODELS[0].state_dict() | {"more": torch.zeros(2)}, second)
    assert main(["inspect", str(tmp_path / "*.pt")]) == 0
    assert f"{second} holds other tensors than {first}" in capsys.readouterr().out
    assert main(["inspect", str(first), str(third)]) == 0
    assert "2 checkpoints" in capsys.readouterr().out
    torch.save({"a": Malicious()}, third)
    assert main(["inspect", str(third)]) == 2
    assert "could run code" in capsys.readouterr().err
    assert main(["inspect", str(first), "--step", "3"]) == 2
    assert "are for run files" in capsys.readouterr().err


def test_inspect_says_what_would_be_loaded(tmp_path, capsys):
    paths = saved(tmp_path)
    assert main(["inspect", str(paths[0])]) == 0
    roles = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if "float32" in line}
    assert roles["first.weight"] == roles["third.bias"] == "parameter"
    assert roles["norm.running_var"] == "buffer"
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom landscape import Objective\n"
        "def make(files):\n"
        "    model = torch.nn.Module()\n"
        "    model.first = torch.nn.Linear(4, 4)\n"
        "    return Objective(model, lambda o, t, s: o.mean(), torch.ones(2, 4), torch.ones(2))\n"
    )
    spec = f"{tmp_path / 'mine.py'}:make"
    assert main(["inspect", str(tmp_path / "*.pt"), "--objective", spec]) == 0
    text = capsys.readouterr().out
    roles = {line.split()[0]: line.split("  ")[-1] for line in text.splitlines() if "float32" in line}
    assert {name for name, role in roles.items() if role == "parameter"} == {"first.weight", "first.bias"}
    assert roles["third.weight"] == "left out"
    assert "20 parameters" in text
    torch.save({"first.weight": torch.zeros(4, 4)}, paths[2])
    assert main(["inspect", str(tmp_path / "*.pt"), "--objective", spec]) == 2
    assert "first.bias is missing" in capsys.readouterr().err


OBJECTIVE = """
import torch
from landscape import Objective

def make_objective(files):
    assert sorted(files) == [10, 200, 3000]
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    inputs, targets = torch.randn(20, 4), torch.randint(3, (20,))
    return Objective(model, lambda o, t, step: torch.nn.functional.cross_entropy(o, t), inputs, targets)
"""


def test_every_analysis_reads_them_from_the_command_line(tmp_path, capsys):
    models = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)) for _ in range(3)]
    saved(tmp_path, models=models)
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    pattern, objective = str(tmp_path / "step_*.pt"), ["--objective", f"{tmp_path / 'mine.py'}:make_objective"]
    assert main(["eigenpairs", pattern, "--k", "1", *objective]) == 0
    eigs = load_dataset(tmp_path / "checkpoints.eigenpairs.h5")
    assert eigs.step.values.tolist() == STEPS
    assert eigs.certified.all()
    assert main(["gradient", pattern, "--steps", "200", *objective]) == 0
    assert main(["slice", "--checkpoints", pattern, "--step", "10", "--points", "3", *objective]) == 0
    capsys.readouterr()
    for command, message in (
        (["valley", pattern], "say what it is with --objective FILE.py:function"),
        (["bifurcation", pattern], "holds no history"),
        (["density", str(tmp_path / "*.bin"), *objective], "no file matches"),
        (["density", pattern, "--checkpoints", pattern, *objective], "give one FILE, or --checkpoints"),
        (["density", *objective], "give one FILE, or --checkpoints"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["pt", "Lightning", "shards of safetensors"])
def test_converted_they_are_a_run_file_with_the_same_rows(kind, tmp_path, capsys):
    (tmp_path / "ckpts").mkdir()
    saved(tmp_path / "ckpts", kind)
    out = tmp_path / "run.h5"
    assert main(["convert", str(out), str(tmp_path / "ckpts"), "--optimizer", "gd", "--learning-rate", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("3 checkpoints are in")
    with open_run(out) as run:
        assert run.status == "complete"
        assert run.checkpoints.step.values.tolist() == STEPS
        assert run.checkpoints.attrs["learning_rate"] == 0.5
        names = list(run.tensors)
        assert not any("running" in name for name in names)
        for row, model in enumerate(MODELS):
            state = {("model." if kind == "Lightning" else "") + name: t for name, t in model.state_dict().items()}
            expected = np.concatenate([state[name].numpy().ravel() for name in names])
            np.testing.assert_array_equal(run.checkpoints.params[row], expected)
        np.testing.assert_array_equal(run.checkpoints.buffers, STATISTICS)
    assert verify(out, progress=False).damaged == ()
    assert main(["convert", str(out), str(tmp_path / "ckpts")]) == 2
    assert "exists; give another path" in capsys.readouterr().err


def test_converting_writes_the_parameters_of_the_objective(tmp_path):
    models = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)) for _ in range(3)]
    saved(tmp_path, models=models)
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    out, pattern = tmp_path / "run.h5", str(tmp_path / "*.pt")
    assert main(["convert", str(out), pattern, "--objective", f"{tmp_path / 'mine.py'}:make_objective"]) == 0
    with open_run(out) as run:
        assert list(run.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        np.testing.assert_array_equal(run.checkpoints.params[1], ParamLayout.of(models[1]).flatten_model(models[1]))
