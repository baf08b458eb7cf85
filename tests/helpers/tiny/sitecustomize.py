"""Python reads this file when it starts, if its folder is on PYTHONPATH: lessons of seconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.helpers import tiny_lessons

tiny_lessons.shrink()
