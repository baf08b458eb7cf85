"""Settings of all tests: offline, small caches, tiny data."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COURSE_PROFILE", "lab")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COURSE_LANG", None)  # the tests read English

import pytest
import torch

from tests.helpers import warm
from utils.course.session import keep_freed_memory

keep_freed_memory()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell lets a job in the background ignore Ctrl-C, and so do the programs that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))

LONGEST = ("tests/gpu/test_t4", "tests/gpu/test_a100", "tests/stages", "tests/gpu", "tests/browser")
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
    """The tests keep their stand-ins in a separate cache folder."""
    os.environ["COURSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _shared_imports():
    """Programs and kernels that ask for it begin with the libraries imported."""
    with warm.shared():
        yield


def pytest_collection_modifyitems(items):
    """Skip long tests, except in `make test-all`, and start the longest files first.

    `make test` distributes files to its workers (`--dist loadfile`), so that a file's tests stay
    together. xdist's groups would not: pytest 9.2 ignores the names that xdist 3.8 gives to them.
    """
    if os.environ.get("COURSE_TEST_ALL") != "1":
        later = pytest.mark.skip(reason="it is long and belongs to `make test-all`")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(later)
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish():
    """Garbage collections, of which a training makes several, leave out what is imported by now."""
    gc.collect()
    gc.freeze()
