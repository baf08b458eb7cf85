"""What a notebook or the site shows as measured was measured with today's data."""

import json

import pytest

from utils.course.paths import BENCHMARKS
from utils.data import fingerprint, load_feedback, load_preferences

LOADERS = {
    "frontier": load_feedback,
    "ablations": load_feedback,
    "learning_curve": load_feedback,
    "negatives": load_preferences,
    "orpo_quality": load_preferences,
    "attributes": load_preferences,
    "on_policy": load_preferences,
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_committed_measurement_is_of_todays_data(name, monkeypatch):
    for variable in ("COURSE_FEEDBACK_DATA", "COURSE_PREFERENCE_DATA"):
        monkeypatch.delenv(variable, raising=False)
    found = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    assert found["data"] == fingerprint(LOADERS[name](offline=True, quiet=True))
