"""The dashboard: its page holds the Datasets' numbers, needs nothing else, and follows the step in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr

import viz


def numbers(board):
    """What the page was given to draw."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', board.page, re.DOTALL)[1]
    return json.loads(text)


def line(series):
    """A line as it is drawn: steps and values, NaN where there is none."""
    return np.array(series["x"]), np.array([np.nan if y is None else y for y in series["y"]])


@pytest.fixture
def board(history, eigs, grads, plane, path, spectrum, onsets):
    history.attrs["period"] = 16
    planes = [plane.assign_coords(step=step) for step in (20, 5)]
    return viz.dashboard(
        history, eigs=eigs, grads=grads, planes=planes, paths=[path, path.isel(step=[0])], spectrum=spectrum,
        onsets=onsets, start=12, title="A </script> run",
    )  # fmt: skip


def test_lines_hold_what_was_recorded(board, history, eigs, grads):
    weights, loss, eigenvalues, shares = numbers(board)["panels"]
    for i, series in enumerate(weights["series"]):
        np.testing.assert_allclose(line(series), [history.step, history.class_weight[:, i]], rtol=1e-3)
    np.testing.assert_allclose(line(loss["series"][0]), [history.step, history.loss], rtol=1e-3)
    assert (loss["name"], loss["log"], weights["log"]) == ("Loss", True, False)
    for i in range(2):
        np.testing.assert_allclose(line(eigenvalues["series"][i]), [eigs.step, eigs.eigenvalue[:, i]], rtol=1e-3)
    assert [series["kind"] for series in eigenvalues["series"]] == ["dots", "dots", "limit"]
    np.testing.assert_allclose(line(eigenvalues["series"][2])[1], eigs.threshold)
    assert [series["label"] for series in shares["series"]] == ["v₁", "v₂", "outside"]
    np.testing.assert_allclose(
        line(shares["series"][1])[1], np.abs(grads.component[:, 1]) / grads.gradient_norm, rtol=1e-3
    )


def test_what_belongs_to_one_step_is_held_in_the_order_of_steps(board, plane, path, eigs, spectrum, grads):
    data = numbers(board)
    first, second = data["sections"]["planes"]
    assert (first["step"], second["step"]) == (5, 20)
    low, high = data["sections"]["range"]
    assert (low, high) == pytest.approx((float(plane.loss.min()), float(plane.loss.max())))
    shade = np.frombuffer(base64.b64decode(first["values"]), np.uint8).reshape(first["shape"])
    np.testing.assert_allclose(
        low * (high / low) ** (shade / 254), plane.loss, rtol=0.5 * np.log(high / low) / 254 * 1.01
    )
    assert (first["alpha"], first["beta"]) == ([-1, 1], [-0.5, 0.5])
    np.testing.assert_allclose(second["path"]["alpha"], path.alpha)
    assert len(first["path"]["beta"]) == 1
    held = data["spectrum"]
    np.testing.assert_allclose(held["eigenvalues"]["values"], eigs.eigenvalue, rtol=1e-3)
    density = np.array(held["density"]["values"], dtype=float)
    drawn = spectrum.density.values > spectrum.density.values.max() / 1e4
    np.testing.assert_array_equal(np.isfinite(density), drawn)
    np.testing.assert_allclose(density[drawn], spectrum.density.values[drawn], rtol=5e-3)
    np.testing.assert_allclose(
        np.array(data["gradient"]["values"])[:, 2], grads.bulk_norm / grads.gradient_norm, rtol=1e-3
    )


def test_losses_that_are_not_finite_have_a_mark_of_their_own(history, plane):
    plane = plane.assign(loss=plane.loss.copy())
    plane.loss[2, 1] = np.inf
    (held,) = numbers(viz.dashboard(history, planes=plane, scale="linear"))["sections"]["planes"]
    shade = np.frombuffer(base64.b64decode(held["values"]), np.uint8).reshape(held["shape"])
    assert np.argwhere(shade == 255).tolist() == [[2, 1]]


def test_long_histories_keep_the_extremes_of_every_stretch():
    step = np.arange(100_000)
    loss = 2 + np.sin(step / 7000) + 0.3 * (-1.0) ** step
    loss[77_777], loss[50:400] = 9, np.nan
    history = xr.Dataset({"loss": ("step", loss)}, {"step": step})
    at, values = line(numbers(viz.dashboard(history))["panels"][0]["series"][0])
    assert len(at) <= 2400
    assert (np.diff(at) > 0).all()
    assert values[at == 77_777] == 9
    np.testing.assert_allclose(values[np.isfinite(values)], loss[at[np.isfinite(values)]], rtol=1e-3)
    above, below = values > 2 + np.sin(at / 7000), values < 2 + np.sin(at / 7000)
    assert min(above.sum(), below.sum()) > 1000  # both states of the two-cycle


def test_a_page_needs_nothing_else_and_its_text_cannot_end_the_data(board, tmp_path):
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(\s*["']?http""", board.page)
    assert numbers(board)["title"] == "A </script> run"
    saved = board.save(tmp_path / "run.html")
    assert saved.read_text(encoding="utf-8") == board.page
    framed = board._repr_html_()
    assert html.unescape(re.search('srcdoc="([^"]*)"', framed)[1]) == board.page
    assert repr(board) == f"Dashboard({len(board.page.encode()) / 1000:.0f} kB)"


def test_parts_that_are_not_given_are_not_shown(history):
    data = numbers(viz.dashboard(history[["loss"]]))
    assert [panel["name"] for panel in data["panels"]] == ["Loss"]
    assert (data["sections"], data["spectrum"], data["gradient"]) == (None, None, None)
    assert (data["first"], data["last"], data["start"], data["period"]) == (0, 39, 39, None)


def test_what_a_dashboard_cannot_draw_is_refused_in_a_line(history, plane, path, eigs):
    for call, says in (
        (lambda: viz.dashboard(history[["accuracy"]]), "neither class_weight nor loss"),
        (lambda: viz.dashboard(history.isel(step=[3])), "at least two steps, got step 3"),
        (lambda: viz.dashboard(history, planes=[plane], paths=[path, path]), "as many as planes, 1, got 2"),
        (lambda: viz.dashboard(history, planes=[plane.drop_vars("step")]), "scalar coordinate step"),
        (lambda: viz.dashboard(history, planes=[plane - 1]), 'scale="log" positive'),
        (lambda: viz.dashboard(history, planes=[plane], scale="sqrt"), "linear"),
        (lambda: viz.dashboard(history, planes=[plane.isel(alpha=[0, 1, 4])]), "alpha must rise evenly"),
        (lambda: viz.dashboard(history, eigs=eigs.drop_vars("eigenvalue")), "'eigenvalue' is missing"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(TypeError, match=r"xarray\.Dataset"):
        viz.dashboard(history.loss)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_in_a_browser_the_page_shows_the_numbers_of_its_step(board, history, tmp_path):
    page = board.page.replace("</body>", "<script>go(20); zoom(10)</script></body>")
    (tmp_path / "run.html").write_text(page, encoding="utf-8")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run(
        [*browser, (tmp_path / "run.html").as_uri()], capture_output=True, text=True, timeout=60
    ).stdout
    words = re.search(r'<output id="now"[^>]*>(.*?)</output>', shown)[1]
    assert words.startswith("step 20 · phase 0.250 · accuracy 0.5 · ")
    assert f"loss {float(history.loss[20]):.3g}" in words
    assert "Section at step 20" in shown
    assert shown.count('class="cursor"') == 4
    assert shown.count('<path class="series"') + shown.count('<path class="dots"') == 3 + 1 + 2 + 3 + 1
