"""Headless Chromium for tests: pages are opened, scripts run, the mouse moves, and pictures are taken."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WHY_NOT = None
if CHROMIUM is None:
    WHY_NOT = "there is no Chromium: apt install chromium"
elif importlib.util.find_spec("websocket") is None:
    WHY_NOT = "websocket-client is not installed, by which Chromium is driven"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
FLAGS = ("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking")
OUT_OF_THE_WAY = ("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-allow-origins=*")
FLAT = ("--disable-gpu",)
SOLID = ("--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader")
"""Without and with what draws surfaces; the latter in software."""


class Browser:
    """One tab of a headless Chromium, driven by its DevTools protocol."""

    def __init__(self, profile: Path, graphics: tuple[str, ...] = FLAT):
        import websocket

        flags = [*FLAGS, *graphics, *OUT_OF_THE_WAY, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=quiet, stderr=quiet)
        port = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 20
        while not (port.exists() and "\n" in port.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.skip(f"{CHROMIUM} does not start")
            time.sleep(0.05)
        with urlopen(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list") as answer:
            tab = next(one for one in json.load(answer) if one["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=20)
        self.numbers, self.events = itertools.count(1), []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """Result of a method; what happens meanwhile is kept."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def run(self, script: str):
        """Value of an expression of JavaScript, awaited if it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page, with nothing remembered of what happened before."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def phone(self, on: bool) -> None:
        """Whether the tab is as small as a phone's."""
        if on:
            self.call("Emulation.setDeviceMetricsOverride", **PHONE)
        else:
            self.call("Emulation.clearDeviceMetricsOverride")

    def place(self, selector: str) -> dict[str, float]:
        """Where the first element of a selector stands on the screen: x, y, width, height."""
        box = f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()"
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        found = self.run(box)
        return {name: found[name] for name in ("x", "y", "width", "height")}

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at one point, move it to another in ten steps, and let go."""
        self._mouse("mouseMoved", start)
        self._mouse("mousePressed", start, button="left", buttons=1, clickCount=1)
        for part in np.linspace(0, 1, 10):
            self._mouse(
                "mouseMoved", tuple((1 - part) * np.array(start) + part * np.array(end)), button="left", buttons=1
            )
        self._mouse("mouseReleased", end, button="left", clickCount=1)

    def _mouse(self, kind: str, point: tuple[float, float], **options) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=float(point[0]), y=float(point[1]), **options)

    def picture(self, selector: str) -> np.ndarray:
        """Pixels of an element as it is seen now, (height, width, 3)."""
        clip = self.place(selector) | {"scale": 1}
        scrolled = self.run("[window.scrollX, window.scrollY]")
        clip["x"], clip["y"] = clip["x"] + scrolled[0], clip["y"] + scrolled[1]
        data = self.call("Page.captureScreenshot", clip=clip, format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int)

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression of JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"not in {seconds} s: {condition}"
            time.sleep(0.05)

    def close(self) -> None:
        """End the process."""
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)

    def errors(self) -> list[str]:
        """What the console showed as an error, and requests that failed, since the page was opened."""
        found = []
        for event in self.events:
            said = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif event["method"] == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
                found.append(str([one.get("value") for one in said["args"]]))
            elif event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
                found.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            elif event["method"] == "Network.loadingFailed" and not said.get("canceled"):
                found.append(said["errorText"])
        return found

    def requests(self) -> set[str]:
        """Addresses that the page asked for."""
        asked = (event for event in self.events if event["method"] == "Network.requestWillBeSent")
        return {event["params"]["request"]["url"] for event in asked}
