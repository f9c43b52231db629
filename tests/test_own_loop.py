"""The page on a training loop of one's own: its loop is short, and runs."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

PAGE = Path(__file__).parents[1] / "gallery" / "own_loop.py"


def test_the_loop_is_of_at_most_25_lines_and_what_it_records_is_analysed(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    setup, loop, analysis = re.split(r"^# %%$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:4]
    code = [line for line in loop.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 25
    assert not {"train(", "Objective"} & set(re.findall(r"\w+\(?", loop))
    variables = {}
    # Fewer steps: a page has a minute, a test has not.
    for text in (setup, loop.replace("range(300)", "range(20)"), analysis):
        exec(compile(text, PAGE.name, "exec"), variables)
    plt.close("all")
    run, eigs = variables["run"], variables["eigs"]
    assert run.status == "complete"
    np.testing.assert_array_equal(run.history.step, np.arange(120))
    np.testing.assert_array_equal(run.checkpoints.step, np.arange(0, 120, 25))
    assert run.checkpoints.attrs["optimizer"] == "momentum"
    assert eigs.certified.all()
    np.testing.assert_allclose(eigs.threshold, 2 * 1.9 / 0.7)
    run.close()
