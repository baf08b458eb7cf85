"""The panel, notebook 07 and the demo of notebook 08, driven in a real browser."""

import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from utils.course.paths import ROOT

SCREENSHOTS = ROOT / ".ci" / "output" / "screenshots"  # CI keeps them; git ignores them


def screenshot(page: Page, name: str) -> Path:
    """A picture of the whole page: .ci/output/screenshots/<name>.png."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def run_cells(page: Page, item: str) -> Locator:
    """Choose an item of JupyterLab's Run menu; returns the prompts of the cells that wait or run.

    A page that has just loaded ignores the menu for a moment, even when its kernel is idle.
    The item is chosen again then.
    """
    waiting = page.locator(".jp-InputPrompt", has_text="*")
    for last in (False, False, True):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text(item, exact=True).click()
        try:
            expect(waiting.first).to_be_attached(timeout=10_000)
            break
        except AssertionError:
            if last:
                raise
            page.keyboard.press("Escape")  # closes a menu that is still open
    return waiting


@contextmanager
def jupyterlab(root: Path, notebook: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a notebook below `root` in a new JupyterLab, which ends with the block.

    JupyterLab and its kernels have this environment; its own files are written next to `root`.
    """
    settings, log = root.parent / "settings", root.parent / "lab.log"
    _without_news(settings)
    port, token = _free_port(), secrets.token_hex(16)
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
            *(f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={token}"),
        ],
        env={
            **environment,
            "JUPYTER_CONFIG_DIR": str(settings),
            "JUPYTER_RUNTIME_DIR": str(root.parent / "runtime"),
        },
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_up(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}/doc/tree/{notebook}?token={token}"
    finally:
        server.terminate()  # this also ends its kernels
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


def _without_news(settings: Path) -> None:
    """Settings in which JupyterLab does not ask whether it may fetch announcements."""
    (settings / "labconfig").mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "labconfig" / "page_config.json").write_text(json.dumps(news))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
