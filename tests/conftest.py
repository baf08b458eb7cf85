"""What several tests share: offline, small caches, tiny data."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COURSE_PROFILE", "lab")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))

LONGEST = ("tests/gpu/test_notebooks", "tests/stages", "tests/gpu", "tests/browser")
TEXTS = [
    "giảng viên nhiệt tình , bài giảng dễ hiểu .",
    "thầy dạy quá nhanh , sinh viên không theo kịp .",
    "em không có ý kiến gì thêm .",
    "phòng thực hành nóng , máy chiếu mờ .",
    "cô hoà nhã , luôn trả lời câu hỏi của sinh viên .",
    "chương trình học nặng lý thuyết .",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS * 20


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Stand-ins of the tests go to a folder of their own."""
    os.environ["COURSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Several workers: the tests of a file stay together, unless they name a group of their own.

    Those of a browser stay together as a folder: one event loop serves them all.
    """
    if os.environ.get("COURSE_TEST_ALL") != "1":
        later = pytest.mark.skip(reason="it is long and belongs to `make test-all`")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(later)
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))  # they start first
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            file = item.nodeid.split("::")[0]
            folder = file.rpartition("/")[0]
            group = folder if folder.endswith("browser") else file
            item.add_marker(pytest.mark.xdist_group(group))
