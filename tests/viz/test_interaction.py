"""What moves, moves: sliders and drags change what is seen, in a real browser."""

import time

import numpy as np
import pytest
import xarray as xr
from chromium import SOLID, WHY_NOT, Browser

import viz

CANVAS = ".gl-container canvas"
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser that draws surfaces."""
    browser = Browser(tmp_path_factory.mktemp("solid"), SOLID)
    yield browser
    browser.close()


def share_changed(before, after):
    """Share of the pixels whose colour is another."""
    assert before.shape == after.shape
    return float((np.abs(before - after).max(-1) > 24).mean())


@pytest.fixture
def bowls():
    """A bowl that narrows from frame to frame."""
    side = np.linspace(-1, 1, 21)
    alpha, beta, phase = np.meshgrid(side, side, [0.0, 0.5, 1.0], indexing="ij")
    loss = (1 + 4 * phase) * alpha**2 + beta**2
    return xr.Dataset({"loss": (("alpha", "beta", "phase"), loss)}, {"alpha": side, "beta": side, "phase": phase[0, 0]})


def test_a_surface_changes_with_its_slider_and_turns_with_the_mouse(browser, bowls, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "surface.html"
    viz.interactive_surface(bowls).write_html(page, include_plotlyjs=True, auto_play=False)
    browser.open(page.as_uri())
    browser.wait("document.querySelector('.gl-container canvas') && document.querySelector('.slider-grip-rect')")
    first = settled(browser, CANVAS)
    assert np.ptp(first, axis=(0, 1)).max() > 60  # a surface is there
    grip, rail = browser.place(".slider-grip-rect"), browser.place(".slider-rail-rect")
    y = grip["y"] + grip["height"] / 2
    browser.drag((grip["x"] + grip["width"] / 2, y), (rail["x"] + rail["width"], y))
    last = changed(browser, CANVAS, first)
    box = browser.place(CANVAS)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser.drag(middle, (middle[0] + 150, middle[1] + 40))
    changed(browser, CANVAS, last)
    assert browser.errors() == []


def changed(browser, selector, before, seconds=20):
    """The picture of an element once it is another than `before` and stays the same."""
    deadline = time.monotonic() + seconds
    while share_changed(before, after := settled(browser, selector)) < 0.02:
        assert time.monotonic() < deadline, f"{selector} does not change"
    return after


def settled(browser, selector):
    """The picture of an element once it stays the same."""
    before = browser.picture(selector)
    for _ in range(50):
        browser.run("new Promise(done => setTimeout(done, 100))")
        after = browser.picture(selector)
        if before.shape == after.shape and (before == after).all():
            return after
        before = after
    raise AssertionError(f"{selector} never comes to rest")


def test_a_dashboard_follows_its_slider_the_mouse_and_the_keys(browser, history, eigs, plane, tmp_path):
    planes = [plane.assign(loss=plane.loss * scale, step=step) for scale, step in ((1, 5), (0.5, 20))]
    planes = [one.set_coords("step") for one in planes]
    page = tmp_path / "board.html"
    viz.dashboard(history, eigs=eigs, planes=planes, start=int(history.step[0])).save(page)
    browser.open(page.as_uri())
    browser.wait("document.querySelector('#moment svg, #moment canvas')")
    said = "document.getElementById('now').textContent"
    first, text = settled(browser, "#moment"), browser.run(said)
    rail = browser.place("#slider")
    y = rail["y"] + rail["height"] / 2
    browser.drag((rail["x"] + 8, y), (rail["x"] + rail["width"] - 3, y))
    assert browser.run("Number(document.getElementById('slider').value)") == int(history.step[-1])
    changed(browser, "#moment", first)
    later = browser.run(said)
    assert later != text
    browser.run("document.getElementById('slider').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    assert browser.run(said) != later
    assert browser.errors() == []
