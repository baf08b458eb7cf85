import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from utils.course.profiles import TABLE
from utils.data import mining
from utils.data.mining import (
    Controls,
    MiningError,
    check_unit_rows,
    embed,
    longer_wins,
    mine,
    nearest,
    report,
    text_vectors,
)


def unit_rows(rows, columns, seed):
    made = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_nearest_is_the_sorted_whole_whatever_the_block(block):
    queries, documents = unit_rows(50, 16, 0), unit_rows(200, 16, 1)
    indices, similarities = nearest(queries, documents, 9, block=block)
    whole = queries.astype(np.float64) @ documents.astype(np.float64).T
    assert np.array_equal(indices, np.argsort(-whole, axis=1)[:, :9])
    assert np.allclose(similarities, -np.sort(-whole, axis=1)[:, :9], atol=1e-6)


def test_nearest_is_that_of_sentence_transformers():
    from sentence_transformers.util import semantic_search

    queries, documents = unit_rows(70, 24, 3), unit_rows(300, 24, 4)
    indices, similarities = nearest(queries, documents, 6)
    found = semantic_search(queries, documents, top_k=6)
    assert indices.tolist() == [[hit["corpus_id"] for hit in hits] for hits in found]
    theirs = [[hit["score"] for hit in hits] for hits in found]
    assert np.allclose(similarities, theirs, atol=1e-6)


def test_of_equal_documents_the_first_wins():
    documents = np.repeat(unit_rows(3, 8, 2), 40, axis=0)  # three rows, forty copies each
    indices, _ = nearest(documents[[0, 40, 80]], documents, 5)
    assert indices.tolist() == [[0, 1, 2, 3, 4], [40, 41, 42, 43, 44], [80, 81, 82, 83, 84]]


@pytest.mark.parametrize(("count", "k"), [(2000, 3), (1999, 60), (700, 699), (64, 64), (1, 1)])
def test_nearest_is_exact_whatever_the_groups(count, k):
    # few different values, so that most similarities are equal, and the highest are at the end
    documents = unit_rows(7, 4, 3)[np.arange(count) % 7]
    documents[-1] = documents[0]
    queries = unit_rows(5, 4, 4)
    indices, similarities = nearest(queries, documents, k)
    whole = queries @ documents.T
    assert np.array_equal(indices, np.argsort(-whole, axis=1, kind="stable")[:, :k])
    assert np.array_equal(similarities, np.take_along_axis(whole, indices, axis=1))


def test_rows_that_are_not_unit_are_named_and_zeros_may_stay():
    rows = unit_rows(4, 8, 5)
    rows[1] = 0
    check_unit_rows(rows, "the answers")
    rows[2] *= 3
    with pytest.raises(MiningError, match=r"1 of 4 rows of the answers .*row 3 has 3\b"):
        check_unit_rows(rows, "the answers")
    with pytest.raises(MiningError, match="of the documents"):
        nearest(unit_rows(2, 8, 6), rows, 2)
    with pytest.raises(MiningError, match="of the queries"):
        nearest(rows, unit_rows(2, 8, 6), 2)
    rows[2] = np.nan
    with pytest.raises(MiningError, match="row 3 has nan"):
        mine(["a?", "b?", "c?", "d?"], list("abcd"), vectors=(unit_rows(4, 8, 7), rows))


LAB, REAL = (TABLE[name].pair_mining for name in ("lab", "t4"))


def test_the_labs_embedding_of_a_list_is_that_of_its_parts_together():
    questions, answers = TEXTS[:2], TEXTS[2:]
    asked, answered = text_vectors(questions, answers)
    assert np.array_equal(embed(TEXTS, LAB, "cpu"), np.vstack([asked, answered]))


def test_an_encoder_reads_segmented_text_and_gives_unit_rows(monkeypatch):
    asked = {}

    class Encoder:
        def __init__(self, name, device, model_kwargs):
            asked.update(name=name, device=device, **model_kwargs)

        def encode(self, texts, batch_size, **_):
            asked.update(texts=texts, batch_size=batch_size)
            return 3 * np.eye(len(texts), dtype=np.float16)

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder)
    )
    monkeypatch.setattr(mining.hub, "fetch", lambda name: Path("fetched", name))
    rows = embed(["giảng viên nhiệt tình", "thầy hòa nhã"], REAL, "cuda")
    assert rows.dtype == np.float32 and np.array_equal(rows, np.eye(2))
    assert asked == {
        "name": str(Path("fetched", REAL.model_id)),
        "device": "cuda",
        "dtype": "float16",
        "texts": ["giảng_viên nhiệt_tình", "thầy hoà nhã"],
        "batch_size": REAL.batch_size,
    }


def test_k_beyond_the_documents_is_refused():
    with pytest.raises(ValueError, match="k=4 is not possible: choose 1 to 3"):
        nearest(unit_rows(2, 4, 0), unit_rows(3, 4, 1), 4)


TEXTS = [
    "Thủ đô của Nhật Bản là Tokyo.",
    "Thủ đô của Hàn Quốc là Seoul.",
    "Con mèo kêu “meo meo”.",
    "Bạn nên đi ngủ sớm hơn và bớt xem điện thoại trước giờ ngủ.",
]


def test_text_vectors_are_unit_and_their_products_exact_in_any_order():
    (vectors,) = text_vectors(TEXTS * 50)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=0.02)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert np.array_equal(vectors @ vectors.T, exact.astype(np.float32))
    order = np.random.default_rng(0).permutation(vectors.shape[1])
    assert np.array_equal(vectors[:, order] @ vectors[:, order].T, vectors @ vectors.T)


def test_texts_on_the_same_topic_are_nearer():
    (vectors,) = text_vectors(TEXTS)
    near = vectors @ vectors.T
    assert near[0, 1] > 2 * max(near[0, 2], near[0, 3])


def capitals():
    lands = ["Nhật Bản", "Hàn Quốc", "Lào", "Pháp", "Đức", "Cuba", "Chile", "Peru", "Úc", "Ý"]
    cities = ["Tokyo", "Seoul", "Viêng Chăn", "Paris", "Berlin", "La Habana", "Santiago"]
    cities += ["Lima", "Canberra", "Roma"]
    questions, answers, facts = [], [], []
    for land, city in zip(lands, cities, strict=True):
        questions += [f"Thủ đô của {land} là thành phố nào?", f"Cho hỏi {land} có thủ đô tên gì?"]
        answers += [f"Thủ đô của {land} là {city}.", f"Dạ, {land} có thủ đô tên là {city} ạ."]
        facts += [land, land]
    return questions, answers, facts, [city for city in cities for _ in "ab"]


def test_a_row_of_the_same_fact_is_never_rejected():
    questions, answers, facts, values = capitals()
    found = mine(questions, answers, facts=facts, values=values)
    assert all(facts[row] != facts[other.index] for row, other in enumerate(found))
    # without the facts, the same answer in other words would have been chosen
    blind = mine(questions, answers, controls=Controls(answer_ceiling=1.1, question_ceiling=1.1))
    assert any(facts[row] == facts[other.index] for row, other in enumerate(blind))


def test_the_same_short_answer_is_never_rejected():
    questions = ["3 cộng 4 bằng mấy?", "4 cộng 3 bằng mấy?", "5 cộng 4 bằng mấy?"]
    answers = ["3 cộng 4 bằng 7.", "4 cộng 3 bằng 7.", "5 cộng 4 bằng 9."]
    found = mine(questions, answers, facts=["a", "b", "c"], values=["7", "7", "9"])
    assert [other.index for other in found][:2] == [2, 2]


def test_the_ceilings_keep_an_answer_in_other_words_out():
    questions = [
        "Vì sao nước biển lại mặn?",
        "Nước sông có mặn không, vì sao?",
        "Làm sao cho cơm khỏi khê?",
    ]
    answers = [
        "Nước sông mang muối ra biển, nước bốc hơi còn muối ở lại.",
        "Nước sông mang muối ra biển rồi bốc hơi, còn muối ở lại đó.",
        "Bạn để lửa nhỏ khi cơm cạn nước và nhớ canh giờ.",
    ]
    free = Controls(answer_ceiling=1.1, question_ceiling=1.1, choices=1)
    assert mine(questions, answers, controls=free)[0].index == 1
    assert mine(questions, answers, controls=Controls(choices=1))[0].index == 2


def test_the_result_is_the_same_every_time_and_in_the_band():
    questions, answers, facts, values = capitals()
    band = Controls(band=(0.0, 0.1))
    first = mine(questions, answers, facts=facts, values=values, controls=band)
    assert first == mine(questions, answers, facts=facts, values=values, controls=band)
    assert max(other.similarity for other in first) <= 0.1
    free = mine(questions, answers, facts=facts, values=values)
    assert max(other.similarity for other in free) > 0.1


def sized(count):
    """Questions on one topic whose answers differ only in length."""
    questions = [f"Kể về chuyến đi thứ {n} của nhà bạn?" for n in range(count)]
    answers = [f"Chuyến đi {n} vui{' lắm' * (n % 17)}." for n in range(count)]
    return questions, answers


def test_lengths_are_balanced_and_uses_limited():
    questions, answers = sized(200)
    facts = [str(n) for n in range(200)]
    controls = Controls(slack=0.0)
    found = mine(questions, answers, facts=facts, values=facts, controls=controls)
    rejected = [answers[other.index] for other in found]
    assert 0.45 <= longer_wins(answers, rejected) <= 0.55
    assert max(Counter(rejected).values()) <= controls.max_uses


def test_encoder_vectors_take_the_place_of_the_texts():
    questions, answers = ["a?", "b?", "c?"], ["một hai", "ba bốn năm", "sáu"]
    asked = np.eye(3, dtype=np.float32)
    answered = asked[[1, 2, 0]]  # question 0 is nearest to answer 2, and so on
    found = mine(questions, answers, vectors=(asked, answered), controls=Controls(choices=1))
    assert [other.index for other in found] == [2, 0, 1]


def test_rows_without_a_fair_answer_are_named():
    with pytest.raises(MiningError, match=r"Row 1: every other answer may be right for 'a\?'"):
        mine(["a?", "b?"], ["có", "Có."])
    with pytest.raises(MiningError, match="There are 1 questions and 1 answers"):
        mine(["a?"], ["có"])


def test_the_report_counts_what_it_names():
    pairs = [
        {"question": "Mèo kêu sao?", "chosen": "Mèo kêu meo meo.", "rejected": "Chó sủa."},
        {"question": "mèo kêu sao", "chosen": "Meo.", "rejected": "Gà trống gáy vang."},
        {"question": "Hai cộng ba?", "chosen": "Năm.", "rejected": "năm"},
        {"question": "Ba cộng ba?", "chosen": "Sáu.", "rejected": "Tám."},
    ]
    figures = report(pairs)
    assert figures["pairs"] == 4
    assert figures["repeated_questions"] == 1
    assert figures["chosen_equals_rejected"] == 1
    assert figures["most_used_rejected"] == 1
    assert figures["longer_wins"] == (1 + 0 + 1 + 0.5) / 4
    assert figures["easy"] + figures["medium"] + figures["hard"] == pytest.approx(1)
    assert figures["question_rejected_p5"] <= figures["question_rejected_p50"]
    with pytest.raises(MiningError, match="There are no pairs"):
        report([])


def test_beyond_the_nearest_the_band_is_still_looked_for():
    questions, answers, facts, values = capitals()
    # two candidates are far above the band; the right ones come later in the ranking
    narrow = Controls(candidates=2, band=(0.0, 0.1))
    found = mine(questions, answers, facts=facts, values=values, controls=narrow)
    assert max(other.similarity for other in found) <= 0.1
