"""Errors of the course's own: a notebook shows their one sentence, not the stack under it."""

import os
import traceback

TRACEBACK_WISH = "COURSE_TRACEBACK"


class CourseError(Exception):
    """What the course foresaw; its message names the thing, what was found and what to do next.

    Jupyter and Colab call `_render_traceback_` in place of their own forty frames;
    COURSE_TRACEBACK=1 brings the frames back.
    """

    def _render_traceback_(self) -> list[str]:
        if os.environ.get(TRACEBACK_WISH) == "1":
            return "".join(traceback.format_exception(self)).rstrip().split("\n")
        return [f"{type(self).__name__}: {self}"]
