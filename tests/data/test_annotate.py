"""Blind sheets hold no label, and the agreement of filled-in sheets is Cohen's κ."""

import csv

import pytest

from tools import annotate


def read(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(source, target, answers):
    rows = read(source)
    for row, answer in zip(rows, answers, strict=True):
        row.update(answer)
    write(target, rows)


def write(target, rows):
    with target.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", annotate.COLUMNS)
def test_a_sheet_hides_the_labels_and_is_the_same_for_all_annotators(kind, tmp_path):
    annotate.sheet(kind, 30, 5, tmp_path / "one.csv")
    annotate.sheet(kind, 30, 5, tmp_path / "two.csv")
    rows = read(tmp_path / "one.csv")
    assert rows == read(tmp_path / "two.csv") and len(rows) == 30
    assert all(row[column] == "" for row in rows for column in annotate.COLUMNS[kind])
    if kind != "feedback":
        sides = [item["better"] for item in annotate.items(kind, 5)]
        assert 0.4 < sides.count("A") / len(sides) < 0.6


def test_agreement_of_filled_in_sheets(tmp_path):
    annotate.sheet("pairs", 40, 2, tmp_path / "blank.csv")
    right = [{"better": item["better"]} for item in annotate.items("pairs", 2)[:40]]
    wrong = [{"better": "B" if row["better"] == "A" else "A"} for row in right]
    half = [*right[:20], *({"better": ""} for _ in range(20))]
    for name, answers in {"an": right, "binh": wrong, "chi": half}.items():
        fill(tmp_path / "blank.csv", tmp_path / f"{name}.csv", answers)
    write(tmp_path / "an.csv", read(tmp_path / "an.csv")[::-1])  # sorted in a spreadsheet
    found = annotate.score("pairs", [tmp_path / f"{name}.csv" for name in ("an", "binh", "chi")])
    assert found["better"]["an · labels of the data"] == 1.0
    assert found["better"]["an · chi"] == 1.0
    assert found["better"]["binh · labels of the data"] < -0.9


def test_sheets_of_different_rows_are_refused(tmp_path):
    annotate.sheet("human", 10, 1, tmp_path / "one.csv")
    annotate.sheet("human", 10, 2, tmp_path / "two.csv")
    with pytest.raises(SystemExit, match="same --seed"):
        annotate.score("human", [tmp_path / "one.csv", tmp_path / "two.csv"])
