"""The server of a class is killed twice while thirty students vote."""

import sys

import pytest

from utils.course.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import classroom


@pytest.mark.skipif(sys.platform != "linux", reason="it needs the addresses of 127.0.0.0/8")
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_no_confirmed_vote_is_lost_and_none_comes_twice(database, request, tmp_path):
    url = request.getfixturevalue("postgres") if database == "postgresql" else ""
    found = classroom.measure(30, tmp_path, url, pause=0.2)
    assert (found["votes"], found["lost"], found["double"]) == (600, 0, 0)
    assert found["kills"] == 2 and found["sent_again"] > 0
