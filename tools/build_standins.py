"""Build the lab profile's chat stand-in before the notebooks run, so that none waits for it."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Pre-train the stand-in unless the cache has it, and print how long this took."""
    from utils import models
    from utils.course import profiles, session
    from utils.data.pairs import load_preferences

    os.environ.setdefault("COURSE_PROFILE", "lab")  # as run_course.py
    profile = profiles.choose()
    if not profile.offline:
        return  # this profile downloads its models
    session.quiet()
    begin = time.perf_counter()
    pairs = load_preferences(offline=True, quiet=True)
    _, name = models.chat_source(profile.chat, pairs)
    print(f"[stand-ins] {name}: ready after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    from utils.course.errors import CourseError

    try:
        main()
    except CourseError as error:
        sys.exit(str(error))
