"""The server of a class is killed twice while thirty students vote."""

import sys

import pytest

from tests.helpers.classes import machine_is_free
from tests.helpers.databases import emptied
from utils.course.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import classroom


def address_of(database, request):
    """The URL of an empty PostgreSQL database; "" for a new SQLite file."""
    if database == "sqlite":
        return ""
    url = request.getfixturevalue("postgres")
    emptied(url).engine.dispose()
    return url


@pytest.mark.skipif(sys.platform != "linux", reason="it needs the addresses of 127.0.0.0/8")
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_no_confirmed_vote_is_lost_and_none_comes_twice(database, request, tmp_path):
    url = address_of(database, request)
    found = classroom.measure(30, tmp_path, url, pause=0.2)
    assert (found["votes"], found["lost"], found["double"]) == (600, 0, 0)
    assert found["kills"] == 2 and found["sent_again"] > 0


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="it needs the addresses of 127.0.0.0/8")
@pytest.mark.parametrize(
    ("clients", "database"), [(30, "sqlite"), (30, "postgresql"), (200, "sqlite")]
)
def test_a_class_that_reads_before_it_votes_loses_nothing(clients, database, request, tmp_path):
    """The load of benchmarks/classroom.json, where students take two seconds per pair.

    Other programs slow the votes down, so that a time in milliseconds is claimed only if the
    machine was free; the benchmark has the times.
    """
    url = address_of(database, request)
    found = classroom.measure(clients, tmp_path, url, pause=2.0)
    assert (found["votes"], found["lost"], found["double"]) == (20 * clients, 0, 0)
    assert found["kills"] == 2
    assert found["met_a_kill"] < 10 * clients  # of 20 per client
    if clients == 30 and machine_is_free():
        assert found["others_p95_ms"] < 300
