"""How far a long step has come: a bar with the time left, live only.

A bar appears after three seconds and goes when its step is done, so that saved outputs hold none.
`COURSE_PROGRESS=0` switches all bars off; a headless run sets it.
"""

import os
import sys
from collections.abc import Iterator, Sequence

from tqdm.auto import tqdm

WISH = "COURSE_PROGRESS"
DELAY = 3.0  # seconds before a bar appears: a short step needs none


def live() -> bool:
    """Whether somebody watches: a notebook that is open, or a terminal."""
    if os.environ.get(WISH) == "0":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def bar(what: str, total: int, unit: str = "it", *, hidden: bool = False) -> tqdm:
    """A bar to `update`, with a line of figures through `set_postfix`; close it at the end."""
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        delay=DELAY,
        leave=False,
        disable=hidden or not live(),
        mininterval=0.5,
        dynamic_ncols=True,
    )


def track(items: Sequence, what: str, unit: str = "it") -> Iterator:
    """The items one by one, with a bar that counts them."""
    with bar(what, len(items), unit) as shown:
        for item in items:
            yield item
            shown.update()
