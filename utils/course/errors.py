"""The course's own errors: a notebook shows their message without a traceback."""

import os
import traceback

TRACEBACK_VARIABLE = "COURSE_TRACEBACK"


class CourseError(Exception):
    """An expected error: its message names the thing, what was found, and what to do next.

    Jupyter and Colab call `_render_traceback_` instead of printing their own traceback. Set
    COURSE_TRACEBACK=1 to see the whole traceback.
    """

    def _render_traceback_(self) -> list[str]:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            return "".join(traceback.format_exception(self)).rstrip().split("\n")
        return [f"{type(self).__name__}: {self}"]


class SettingError(CourseError, ValueError):
    """A setting or an argument that cannot work."""
