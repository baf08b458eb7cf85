"""The loopback Hub that the notebooks of this folder load from."""

from collections.abc import Iterator

import pytest

from tests.gpu.machines import ROWS
from tests.hub.conftest import hub_with_matching_vocabularies
from tests.hub.server import Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    with hub_with_matching_vocabularies(tmp_path_factory.mktemp("shelves"), ROWS) as running:
        yield running
