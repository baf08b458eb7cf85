"""Temporary stores of votes for the tests: SQLite, and a PostgreSQL of their own."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sql

from utils.votes.schema import METADATA
from utils.votes.store import open_store

PASSWORD = "p@ss word/Ố"  # must be escaped in a URL


@pytest.fixture
def store(tmp_path):
    return open_store(f"sqlite:///{tmp_path}/votes.sqlite")


def binary(name):
    found = shutil.which(name)
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found or (str(versions[-1]) if versions else None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def postgres():
    """The URL of a temporary PostgreSQL on loopback, with a password."""
    initdb, pg_ctl = binary("initdb"), binary("pg_ctl")
    if not (initdb and pg_ctl):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed.")
    folder = Path(tempfile.mkdtemp(prefix="votes-"))  # short: a socket's path has 107 bytes
    secret = folder / "password"
    secret.write_text(PASSWORD, encoding="utf-8")
    unprivileged = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        shutil.chown(secret, "postgres")
        unprivileged = ["runuser", "-u", "postgres", "--"]

    def run(*command):
        done = subprocess.run(
            [*unprivileged, *map(str, command)],
            cwd=folder,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never close
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{command[0]} failed"

    data, port = folder / "data", free_port()
    quick = ["-E", "UTF8", "--locale", "C", "-A", "scram-sha-256", "-U", "course", "--no-sync"]
    run(initdb, "-D", data, *quick, f"--pwfile={secret}")
    options = f"-p {port} -k {folder} -h 127.0.0.1"
    run(pg_ctl, "-D", data, "-o", options, "-l", folder / "log", "-w", "-t", "60", "start")
    yield sql.URL.create(
        "postgresql+psycopg", "course", PASSWORD, "127.0.0.1", port, "postgres"
    ).render_as_string(hide_password=False)
    run(pg_ctl, "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def any_store(request, tmp_path):
    """Run the test on both databases, each with an empty table."""
    if request.param == "sqlite":
        return open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    return emptied(request.getfixturevalue("postgres"))


def emptied(url):
    """The store at this URL without the rows that earlier tests of the module left."""
    store = open_store(url)
    with store.engine.begin() as connection:
        for table in reversed(METADATA.sorted_tables):
            connection.execute(sql.delete(table))
    return store
