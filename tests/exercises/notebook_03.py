def _in_order(lengths, limit):
    packs, room = [], 0
    for row, length in enumerate(lengths):
        if not packs or length > room:
            packs.append([])
            room = limit
        packs[-1].append(row)
        room -= length
    return packs


def _first_fit(lengths, limit):
    """As the rows come, without sorting them."""
    packs = []
    for row, length in enumerate(lengths):
        fits = [p for p in packs if sum(lengths[i] for i in p) + length <= limit]
        if fits:
            fits[0].append(row)
        else:
            packs.append([row])
    return packs


def _best_fit(lengths, limit):
    packs, room = [], []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [p for p in range(len(packs)) if room[p] >= lengths[row]]
        p = min(fits, key=lambda p: room[p]) if fits else len(packs)
        if p == len(packs):
            packs.append([])
            room.append(limit)
        packs[p].append(row)
        room[p] -= lengths[row]
    return packs


RIGHT = {
    "03.1": lambda prompt, answer: [-100] * len(prompt) + answer,
    "03.2": lambda shapes, rank: sum(rank * (a + b) for a, b in shapes),
    "03.3": _best_fit,
}
WRONG = [
    ("03.1", lambda prompt, answer: prompt + answer, "the prompt is learned too"),
    ("03.1", lambda prompt, answer: [-100] * len(prompt) + answer[:-1] + [-100], "never stop"),
    ("03.1", lambda prompt, answer: answer, "over the whole row"),
    ("03.1", lambda prompt, answer: [0] * len(prompt) + answer, "the value -100"),
    ("03.1", lambda p, a: [-100] * (len(p) - 1) + a + [-100], "do not shift"),
    ("03.2", lambda shapes, rank: sum(a * b for a, b in shapes), "the frozen weights"),
    ("03.2", lambda shapes, rank: sum(rank * a for a, _ in shapes), "only one of the two"),
    ("03.2", lambda shapes, rank: sum(a + b for a, b in shapes), "multiply by the rank"),
    ("03.3", _in_order, "longest rows first"),
    ("03.3", _first_fit, "fit into 3 packs of 10: take the longest rows first"),
    ("03.3", lambda lengths, limit: [[1], [2, 3], [4, 5]], "exactly one pack"),
    ("03.3", lambda lengths, limit: [[i] for i in range(len(lengths))], "a pack of its own"),
    ("03.3", lambda lengths, limit: [list(range(len(lengths)))], "longer than the limit"),
    ("03.3", lambda lengths, limit: [[0, 1]], "exactly one pack"),
]
