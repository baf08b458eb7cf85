import unicodedata

import pytest

from utils.data.text import duplicate_key, new_tone_style, normalise, segment, syllables


def test_normalise_composes_and_collapses():
    decomposed = unicodedata.normalize("NFD", "thầy  dạy\u200b\thay ")
    assert normalise(decomposed) == "thầy dạy hay"


@pytest.mark.parametrize(
    ("old", "new"),
    [("hòa", "hoà"), ("khỏe", "khoẻ"), ("ủy", "uỷ"), ("Thúy", "Thuý")],
)
def test_tone_style_moves_the_mark(old, new):
    assert new_tone_style(old) == new
    assert new_tone_style(new) == new


@pytest.mark.parametrize("word", ["quý", "quỳ", "hoàn", "khoản", "tòan", "thủya"])
def test_tone_style_leaves_closed_syllables(word):
    assert new_tone_style(word) == word


def test_segment_joins_words_and_is_idempotent_over_spelling():
    assert segment("giảng viên nhiệt tình") == "giảng_viên nhiệt_tình"
    spellings = ["thầy hoà nhã", "thầy hòa nhã", unicodedata.normalize("NFD", "thầy hoà nhã")]
    assert len({segment(spelling) for spelling in spellings}) == 1
    assert segment("  ") == ""


def test_duplicate_key_ignores_case_punctuation_and_tone_style():
    assert duplicate_key("Thầy Hòa dạy hay !!") == duplicate_key("thầy hoà dạy , hay")
    assert duplicate_key("thầy dạy hay") != duplicate_key("thầy dạy hày")
    assert syllables("Thầy dạy hay!") == ["thầy", "dạy", "hay"]
