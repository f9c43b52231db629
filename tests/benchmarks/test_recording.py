"""What recording each step of a run of 603 parameters costs, beside `torch.save` of the parameters at each step.

Both are of one process, in turn, into folders beside each other. A row of the history is what `dynloss.train` records:
six scalars and three class weights; θ is saved at every step. Read the table by `ratio`, which is of one minute on one
machine; the microseconds are those of a quiet moment, the least of several repetitions, with the last commit included,
and depend on the machine and on what else it does: `wall` grows with other programs, `process` hardly.
"""

import gc
import shutil
import time

import numpy as np
import torch

import landscape

N_PARAMS, N_STEPS, N_SAVES, ROUNDS = 603, 4096, 300, 9
SCALARS = ("loss", "accuracy", "validation_accuracy", "gradient_norm", "update_norm", "update_cosine")
HISTORY = {name: {} for name in SCALARS} | {"class_weight": {"class": 3}}
LAYOUT = landscape.ParamLayout(("w",), ((N_PARAMS,),))


def steps_of_a_run(n: int):
    """θ at each step, all different, and its row of the history."""
    generator = np.random.default_rng(0)
    params = torch.from_numpy(generator.normal(size=(n, N_PARAMS)))
    scalars, weights = generator.random((n, len(SCALARS))).tolist(), generator.random((n, 3))
    rows = [dict(zip(SCALARS, row, strict=True)) | {"class_weight": w} for row, w in zip(scalars, weights, strict=True)]
    return [row.clone() for row in params], rows  # views would be saved with all of what they are views of


def test_recording_each_step(tmp_path, results, quick):
    params, rows = steps_of_a_run(N_STEPS)
    ours, theirs = {"process": [], "wall": []}, {"process": [], "wall": []}
    for turn in range(3 if quick else ROUNDS):
        path, folder = tmp_path / f"{turn}.h5", tmp_path / f"saves{turn}"
        folder.mkdir()
        gc.collect()
        with landscape.RunWriter(path, LAYOUT, history=HISTORY) as writer, Clock(ours, N_STEPS):
            for step, row in enumerate(rows):
                writer.append(step, params[step], **row)
            writer.commit()
        with Clock(theirs, N_SAVES):
            for step in range(N_SAVES):
                torch.save(params[step], folder / f"{step}.pt")
        check(path, folder, params, rows)
        path.unlink()
        shutil.rmtree(folder)
    results.recording = {
        "parameters": N_PARAMS,
        "steps": N_STEPS,
        "microseconds": {name: 1e6 * min(values) for name, values in ours.items()},
        "torch_save_microseconds": {name: 1e6 * min(values) for name, values in theirs.items()},
        "ratio": {name: min(theirs[name]) / min(ours[name]) for name in ours},
    }


class Clock:
    """Notes the seconds a step that its block takes."""

    def __init__(self, times: dict[str, list[float]], n_steps: int):
        self.times, self.n_steps = times, n_steps

    def __enter__(self):
        self.start = {"process": time.process_time(), "wall": time.perf_counter()}

    def __exit__(self, *exception):
        end = {"process": time.process_time(), "wall": time.perf_counter()}
        for name, values in self.times.items():
            values.append((end[name] - self.start[name]) / self.n_steps)


def check(path, folder, params, rows) -> None:
    """What was timed was recorded: every row, and every file."""
    with landscape.open_run(path) as run:
        assert run.status == "complete"
        np.testing.assert_array_equal(run.checkpoints.params, torch.stack(params).numpy())
        for name in HISTORY:
            np.testing.assert_array_equal(run.history[name], [row[name] for row in rows])
    for step in range(N_SAVES):
        assert torch.equal(torch.load(folder / f"{step}.pt"), params[step])
