"""The loopback Hub that the notebooks of this folder load from."""

from collections.abc import Iterator

import pytest

from tests.gpu.machines import ROWS
from tests.hub.conftest import hub_of_its_own_words
from tests.hub.server import Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    with hub_of_its_own_words(tmp_path_factory.mktemp("shelves"), ROWS) as running:
        yield running
