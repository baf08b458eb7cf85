"""A pytest plugin that runs the notebooks as two chains at once, each in its own worker.

The notebooks of a chain hand artifacts over to each other, so they run in order. Two programs with
one thread each are faster than one program with two threads after another.
"""

from pathlib import PurePosixPath

from xdist.scheduler.loadscope import LoadScopeScheduling

REWARD = ("01", "02")  # they need nothing of the others, and take about half of the time


def chain_of(nodeid: str) -> str:
    """The chain of a notebook, by its number.

    >>> chain_of("notebooks/vi/04_llama_dpo_vi_alpaca.ipynb::"), chain_of("notebooks/01_a.ipynb::")
    ('others', 'reward')
    """
    number = PurePosixPath(nodeid.split("::")[0]).name[:2]
    return "reward" if number in REWARD else "others"


class Chains(LoadScopeScheduling):
    """xdist's scheduler by scope, where the scope of a notebook is its chain."""

    def _split_scope(self, nodeid: str) -> str:
        return chain_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    """Called by pytest-xdist."""
    return Chains(config, log)
