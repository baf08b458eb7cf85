"""The site, built once for each file of tests, and the browser of tests/browser."""

import pytest

from tests.browser.conftest import browser, browser_page

__all__ = ["browser", "browser_page", "site"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site built from the notebooks as they are."""
    pytest.importorskip(
        "math_core", reason="The package of the site is not installed: run make site once."
    )
    from tools import build_site

    folder = tmp_path_factory.mktemp("trang web") / "site"
    build_site.build(folder)
    return folder
