"""Unusual user data: 30 rows, some very long, some of one word, some of emoji only."""

import csv
import io
import json
import unicodedata
from pathlib import Path

LONG, LONGEST = 150, 400  # syllables
_CLAUSES = (
    "thầy giảng nhanh quá nên tụi em không kịp ghi bài",
    "máy chiếu phòng thực hành mờ mà không ai sửa",
    "cô trả lời mọi câu hỏi rất tận tình",
    "giáo trình cũ so với những gì công ty yêu cầu",
)


def rambling(syllables: int) -> str:
    """One sentence with this many syllables and no full stop inside."""
    words = [word for n in range(syllables) for word in _CLAUSES[n % len(_CLAUSES)].split()]
    return " ".join(words[:syllables])


def nfd(text: str) -> str:
    """The text in NFD (diacritics as separate characters), as macOS writes file names."""
    return unicodedata.normalize("NFD", text)


URL = "https://daa.uit.edu.vn/thong-bao?id=20261126&lop=IT001.O11&hk=1&khoa=" + "cntt-" * 12
NEGATIVE, NEUTRAL, POSITIVE = 0, 1, 2
LECTURER, FACILITY = 0, 2
FEEDBACK = {  # sentence, sentiment, topic: 18 + 5 + 7 rows
    "train": [
        (rambling(LONGEST), NEGATIVE, LECTURER),
        (rambling(LONG), POSITIVE, LECTURER),
        ("tệ", NEGATIVE, LECTURER),
        ("hay", POSITIVE, LECTURER),
        ("👍👍👍", POSITIVE, LECTURER),
        ("😡", NEGATIVE, FACILITY),
        ("👨‍👩‍👧‍👦 🇻🇳", NEUTRAL, FACILITY),
        (f"{URL} không vào được, lỗi 404 (HTTP) lúc 23:59", NEGATIVE, FACILITY),
        (nfd("thầy dạy hay, dễ hiểu"), POSITIVE, LECTURER),
        ("cô vui tính .", POSITIVE, LECTURER),
        ("cô vui tính .", POSITIVE, LECTURER),
        ("thầy dạy quá nhanh , không ai hiểu gì .", NEGATIVE, LECTURER),
        ("em không có ý kiến gì thêm .", NEUTRAL, LECTURER),
        ("phòng máy mát , mạng nhanh .", POSITIVE, FACILITY),
        ("phòng học nóng , máy chiếu mờ .", NEGATIVE, FACILITY),
        ("OK 10/10 !!!", POSITIVE, LECTURER),
        ("123 456 7890", NEUTRAL, FACILITY),
        ('thầy nói "học đi", nhưng không chỉ cách học', NEGATIVE, LECTURER),
    ],
    "validation": [
        (rambling(LONG + 30), NEGATIVE, LECTURER),
        ("thầy tận tâm với sinh viên .", POSITIVE, LECTURER),
        ("ghế gãy", NEGATIVE, FACILITY),
        ("😀😀", POSITIVE, FACILITY),
        ("bình thường .", NEUTRAL, LECTURER),
    ],
    "test": [
        (rambling(LONG + 60), POSITIVE, LECTURER),
        ("chán", NEGATIVE, LECTURER),
        ("cô giảng khó hiểu quá .", NEGATIVE, LECTURER),
        ("👎", NEGATIVE, FACILITY),
        ("thư viện rộng , nhiều sách .", POSITIVE, FACILITY),
        (nfd("không có ý kiến"), NEUTRAL, LECTURER),
        (f"xem {URL}", NEUTRAL, FACILITY),
    ],
}


def write_feedback(folder: Path, rows: dict[str, list[tuple[str, int, int]]] | None = None) -> Path:
    """Write train.csv as Excel on Windows does (byte-order mark, CRLF), the others in UTF-8."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in (rows or FEEDBACK).items():
        text = io.StringIO()
        windows = split == "train"
        writer = csv.writer(text, lineterminator="\r\n" if windows else "\n")
        writer.writerows([("sentence", "sentiment", "topic"), *lines])
        encoding = "utf-8-sig" if windows else "utf-8"
        (folder / f"{split}.csv").write_bytes(text.getvalue().encode(encoding))
    return folder


_FACTS = (
    ("Lào", "Viêng Chăn"),
    ("Nhật Bản", "Tokyo"),
    ("Pháp", "Paris"),
    ("Ý", "Roma"),
    ("Nga", "Moskva"),
    ("Áo", "Viên"),
    ("Cuba", "La Habana"),
    ("Peru", "Lima"),
    ("Iran", "Tehran"),
    ("Ai Cập", "Cairo"),
    ("Kenya", "Nairobi"),
    ("Chile", "Santiago"),
)


def pairs() -> list[dict[str, str]]:
    """30 usable rows of question, chosen and rejected, and one with an empty side.

    There is no test split: every tenth row goes into it, and the last of these is very long.
    """
    rows = [
        (rambling(LONG) + "?", "Phải.", "Không."),
        ("Trăng?", rambling(LONGEST), "Không biết."),
        ("🤔", "🙂👍", "🙃"),
        (nfd("Vì sao trời xanh?"), nfd("Do tán xạ ánh sáng."), "Do biển."),
        ("In ra số 1 bằng Python", "for n in range(1):\n    print(n + 1)", "print 1"),
        (f"Trang {URL} nói gì?", "Trang ấy nói về lịch học.", "404"),
        ("Kể cho em nghe về máy chiếu", rambling(60), rambling(LONG)),
    ]
    rows += [(f"{sums} + 2 bằng mấy?", f"Bằng {sums + 2}.", f"Bằng {sums}.") for sums in range(11)]
    rows += [
        (
            f"Thủ đô của {country} là gì?",
            f"Thủ đô của {country} là {capital}.",
            f"Thủ đô của {country} là Hà Nội.",
        )
        for country, capital in _FACTS
    ]
    rows[9], rows[0] = rows[0], rows[9]  # the tenth row is held out
    rows.insert(3, ("Câu này có trả lời không?", "", "Không."))
    return [
        dict(zip(("question", "chosen", "rejected"), row, strict=True)) | {"id": f"own-{number}"}
        for number, row in enumerate(rows)
    ]


def write_pairs(folder: Path, rows: list[dict[str, str]] | None = None) -> Path:
    """train.jsonl with a byte-order mark and CRLF."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in (pairs() if rows is None else rows)]
    text = "\r\n".join(lines) + "\r\n"
    (folder / "train.jsonl").write_bytes(text.encode("utf-8-sig"))
    return folder


def write_human_like(folder: Path) -> Path:
    """The same pairs with the columns of the Human-Like set."""
    rows = [
        {"prompt": row["question"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in pairs()
    ]
    return write_pairs(folder, rows)
