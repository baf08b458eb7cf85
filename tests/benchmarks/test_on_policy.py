"""benchmarks/on_policy.py: the rule, and pairs of the best and the worst of four answers."""

from types import SimpleNamespace

from datasets import Dataset

from benchmarks import on_policy as program

CONTENT = "Rẻ là trái nghĩa của đắt."
TEXTS = (
    (CONTENT, 0),
    ("Dạ: rẻ là trái nghĩa của đắt ạ.", 2),
    ("Dạ, thưa anh chị: Rẻ là trái nghĩa của đắt ạ.", 3),
    ("Dạ: đỏ là trái nghĩa của đắt ạ.", -1),
)


def test_the_rule_counts_attributes_and_refuses_another_content():
    assert [program.score(text, CONTENT) for text, _ in TEXTS] == [score for _, score in TEXTS]


def test_the_best_of_four_stands_against_the_worst_and_ties_give_no_pair():
    bench = SimpleNamespace(questions=Dataset.from_dict({"question": ["A?", "B?"]}))
    fours = [{"question": 1, "text": text, "score": score} for text, score in TEXTS]
    ties = [{"question": 0, "text": CONTENT, "score": 0}] * program.SAMPLES
    made = program.OnPolicy.best_and_worst(bench, [*ties, *fours], 5, seed=1)
    assert made.to_list() == [{"question": "B?", "chosen": TEXTS[2][0], "rejected": TEXTS[3][0]}]
    assert not len(program.OnPolicy.best_and_worst(bench, ties, 5, seed=1))
