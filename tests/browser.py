"""Opens a page in headless Chromium without a network, and asks it what it shows; over its debugging pipe."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """Returns the browser, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A started browser. What a page says is in `console`, what it asks for in `requests`."""

    def __init__(self, process: subprocess.Popen, write: int, read: int):
        self._process, self._write, self._read = process, write, os.fdopen(read, "rb")
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        offline = dict(offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.call("Network.emulateNetworkConditions", **offline)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read.fileno(), 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(params)[:500])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:80])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != number:
            self._note(found)
        assert "error" not in found, found
        return found["result"]

    def show(self, path: Path, width: int = 1100, height: int = 800, dark: bool = False) -> None:
        """Opens a file in a window of that size."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while True:
            found = self._next()
            self._note(found)
            if found.get("method") == "Page.loadEventFired":
                return

    def ask(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> bytes:
        """Returns all of the page as a PNG file."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return base64.b64decode(data)


@contextlib.contextmanager
def started(name: str) -> Iterator[Browser]:
    """Starts the browser `name`, and ends it."""
    to_them, write = os.pipe()
    read, from_them = os.pipe()

    def pipes() -> None:  # where browsers look for them
        a, b = os.dup(to_them), os.dup(from_them)
        os.dup2(a, 3), os.dup2(b, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        process = subprocess.Popen(
            [name, *flags, f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_them), os.close(from_them)
        try:
            yield Browser(process, write, read)
        finally:
            process.kill()
            process.wait()
            os.close(write)
