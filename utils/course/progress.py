"""Progress bars with the remaining time for long steps, shown only if the output is live.

A bar appears after three seconds and disappears at the end of its step, so that saved outputs
contain no bars. `COURSE_PROGRESS=0` switches all bars off; a headless run sets it.
"""

import os
import sys
from collections.abc import Iterator, Sequence

from tqdm.auto import tqdm

from utils.course.language import tr

PROGRESS_VARIABLE = "COURSE_PROGRESS"
DELAY = 3.0  # seconds before a bar appears, because a short step needs none


def live() -> bool:
    """Whether the output is live: in an open notebook or in a terminal."""
    if os.environ.get(PROGRESS_VARIABLE) == "0":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def bar(what: str, total: int, unit: str = "it", *, hidden: bool = False) -> tqdm:
    """A progress bar: call `update` and `set_postfix`, and close it at the end."""
    return tqdm(
        desc=tr(what),
        total=total,
        unit=tr(unit),
        delay=DELAY,
        leave=False,
        disable=hidden or not live(),
        mininterval=0.5,
        dynamic_ncols=True,
    )


def track(items: Sequence, what: str, unit: str = "it") -> Iterator:
    """Yield the items one by one, with a progress bar that counts them."""
    with bar(what, len(items), unit) as shown:
        for item in items:
            yield item
            shown.update()
