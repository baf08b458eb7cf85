"""The panel of notebook 07 and the demo of notebook 08, driven in a real browser."""

from pathlib import Path

from playwright.sync_api import Page

from utils.notebooks import ROOT

SCREENSHOTS = ROOT / ".ci" / "output" / "screenshots"  # CI keeps them; git ignores them


def screenshot(page: Page, name: str) -> Path:
    """A picture of the whole page: .ci/output/screenshots/<name>.png."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path
