"""A headless Chromium that tests open pages in, over its debugging pipe: no driver, no network, no port.

with Browser() as browser:
    page = browser.open(path, width=390)
    page.evaluate("document.title")
    page.problems        # what the console said, and what the page's own policy refused
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 60


def chromium() -> str:
    """The browser of this machine; the test is skipped, with the reason, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here ({', '.join(NAMES)}): `apt-get install chromium-headless-shell` brings one")
    return found


class Browser:
    """One process; a page at a time."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; the shell puts ours there.
        place = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            [
                "bash", "-c", place, chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}",
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._number = 0
        self._waiting = b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol; events that come before it are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Load a file in a window of this size (CSS pixels) and wait until it has loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        return Page(self)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            block = os.read(self._from, 1 << 20)
            assert block, "Chromium ended"
            self._waiting += block
        line, _, self._waiting = self._waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._to)
        os.close(self._from)
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        self._profile.cleanup()


class Page:
    """The page that a browser has open."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, a promise awaited; the page's policy does not reach it."""
        answer = self._browser.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def problems(self) -> list[str]:
        """What was logged, thrown, refused by the page's policy, or asked with a dialog, so far."""
        self.evaluate("0")  # whatever was said before has arrived
        said = {
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Audits.issueAdded",
            "Page.javascriptDialogOpening",
        }
        return [json.dumps(e["params"])[:500] for e in self._browser.events if e.get("method") in said]

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for, the page itself and `data:` left out."""
        self.evaluate("0")
        sent = [e["params"] for e in self._browser.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [str(one["request"]["url"]) for one in sent if one.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG, for a person's eyes."""
        from base64 import b64decode

        answer = self._browser.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(answer["data"]))
