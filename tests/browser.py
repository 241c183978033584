"""A real browser and a real JupyterLab for tests: Debian's Chromium driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TOKEN = "delt"
LOOSE = ("favicon", "Failed to load resource")  # of Jupyter, not ours


@contextmanager
def opened_page(**context: Any) -> Iterator[Any]:
    """A page of a fresh browser; its `errors` are what the console and the scripts complained of."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here: `make browser` installs it")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(viewport={"width": 1200, "height": 1500}, **context).new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)
        page.set_default_timeout(60_000)
        try:
            yield page
        finally:
            browser.close()


def ours(errors: list[str]) -> list[str]:
    """Errors that are not JupyterLab's own noise."""
    return [error for error in errors if not any(word in error for word in LOOSE)]


@contextmanager
def jupyter_lab(root: Path, home: Path) -> Iterator[str]:
    """A fresh JupyterLab on `root`, with settings of its own in `home`; yields its address."""
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "0",
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
    }
    news = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", "--allow-root", f"--ServerApp.root_dir={root}", "--expose-app-in-browser"]
    with open(home / "lab.log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", server, home / "lab.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def open_notebook(page: Any, address: str, name: str) -> None:
    """Open a notebook alone and wait until its kernel answers."""
    page.goto(f"{address}/doc/tree/{name}?token={TOKEN}&reset")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
    page.evaluate(
        """async () => {
            const session = window.jupyterapp.shell.currentWidget.sessionContext;
            await session.ready;
            await session.session.kernel.info;
        }"""
    )


def run_all(page: Any) -> None:
    """Run all cells and wait for the end."""
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def with_parameters(source: Path, target: Path, **values: object) -> None:
    """Copy a notebook with other values in its parameters cell."""
    book = json.loads(source.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = "".join(cell["source"]) + "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
    target.write_text(json.dumps(book), encoding="utf-8")


def picture(page: Any, selector: str) -> str:
    """What a canvas shows, as a data URL."""
    return str(page.locator(selector).first.evaluate("canvas => canvas.toDataURL()"))


def keep(locator: Any, name: str) -> None:
    """Write a screenshot for the documentation where $DELT_SCREENSHOTS names a folder."""
    if folder := os.environ.get("DELT_SCREENSHOTS"):
        locator.screenshot(path=Path(folder) / f"{name}.png")
