"""Keep the catalogue of what the code prints, i18n/vi/LC_MESSAGES/course.po, and the code in step.

    python tools/messages.py            # add the new messages without a translation, drop the rest
    python tools/messages.py --check    # change nothing; exit 1 if a message lacks its translation

A message is a literal in a call of `tr` or `later`, a sentence that a judge in utils/exercises
returns or names a mistake with, a noun that one of the functions of SHOWN puts into its sentence,
a label that one of DRAWN puts into its figure, here or in a notebook, or the text of a box on the
map of the course. A sentence that is printed or raised without `tr` is a fault, unless UNSEEN has
it.
"""

import argparse
import ast
import functools
import json
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import glossary, vietnamese
from utils.course.language import CATALOGUE, entries
from utils.course.notebooks import LESSONS
from utils.course.paths import NOTEBOOKS, ROOT

HEADER = """# What the code prints to students, in Vietnamese: each message and its translation.
# `python tools/messages.py` adds new messages; write their msgstr by hand.
msgid ""
msgstr ""
"Language: vi\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"""
EXERCISES = "utils/exercises"
# function -> the positions and names of the arguments that it translates when it shows them
SHOWN: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("bar", "progress_bar"), (0, 2, "unit")),
    "track": (1, 2, "unit"),
    **dict.fromkeys(("need", "say_longer", "cut"), (2,)),
    **dict.fromkeys(("cut_texts", "in_batches"), (3,)),
    **dict.fromkeys(("check_unit_rows", "need_full_attention"), (1,)),
}
# the same for labels and titles of figures; one with values in it stays as the cell has it
DRAWN: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("histogram", "loss_and_pull"), (2, 3)),
    **dict.fromkeys(("confusion", "small_multiples"), (2,)),
    **dict.fromkeys(("calibration", "clip_curves"), (4,)),
}


SENTENCE = re.compile(r"[A-Za-z]{2,}[,:]? +[a-z]{2,}")
# files whose sentences stay in English, and why
UNSEEN = {
    **dict.fromkeys(
        (f"utils/classroom/{name}.py" for name in ("app", "comparing", "room", "security")),
        "the page has a sentence of its own for each refusal, in both languages: see words.py",
    ),
    "utils/course/hub.py": "the error of a changed download is caught, and another one is shown",
    "utils/course/language.py": "the language is not known yet",
    "utils/data/families.py": "only authors of the shipped pairs call it",
    "utils/door.py": "only authors misspell a public name of a room",
    "utils/losses.py": "the room below all others cannot read the catalogue",
}

# messages with words that are no terms of the glossary here
EXEMPT = {"Every pair has a vote: nothing is left to judge.": ("judge",)}


def _is_text(node: ast.AST | None) -> bool:
    """Whether an expression is a literal text without values."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _literals(node: ast.AST | None) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The texts that an expression can be: itself, or either branch of a choice."""
    if isinstance(node, ast.JoinedStr) or _is_text(node):
        yield node
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body)
        yield from _literals(node.orelse)


def _mistakes(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The messages of a table of mistakes: keys and values of a dict, members of a list's rows."""
    if isinstance(node, ast.Dict):
        for part in (*node.keys, *node.values):
            yield from _literals(part)
    elif isinstance(node, ast.List):
        for row in node.elts:
            for part in getattr(row, "elts", []):
                yield from _literals(part)


def _names(node: ast.Assign) -> list[str]:
    """The names that an assignment gives."""
    return [getattr(target, "id", "") for target in node.targets]


def _own_returns(function: ast.FunctionDef) -> Iterator[ast.AST | None]:
    """What a function returns, without the functions that are defined in it."""
    inside = list(function.body)
    while inside:
        node = inside.pop()
        if isinstance(node, ast.Return):
            yield node.value
        elif not isinstance(node, ast.FunctionDef | ast.Lambda):
            inside.extend(ast.iter_child_nodes(node))


def _called(node: ast.AST) -> str:
    """The name of the function in a call, without its module."""
    function = getattr(node, "func", None)
    return getattr(function, "id", "") or getattr(function, "attr", "")


def _nouns(call: ast.Call) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The literals among the arguments that SHOWN and DRAWN name."""
    drawn = DRAWN.get(_called(call), ())
    wanted = SHOWN.get(_called(call), drawn)
    named = [keyword.value for keyword in call.keywords if keyword.arg in wanted]
    for part in [*(call.args[at] for at in wanted if at in range(len(call.args))), *named]:
        yield from (
            text for text in _literals(part) if not (drawn and isinstance(text, ast.JoinedStr))
        )


def of_source(source: str, judges: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Message, line, and whether it is formatted; `judges` adds what a judge returns.

    >>> list(of_source('print(tr("seed {seed}", seed=1))'))
    [('seed {seed}', 1, True)]
    """
    for node in ast.walk(ast.parse(source)):
        found: list = []
        formatted = False
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("tr", "later"):
            found, formatted = [*_literals(node.args[0])], bool(node.keywords)
            if _called(node) == "later":  # its values come when it is shown
                formatted = any(re.search(r"\{[a-z]", ast.unparse(part)) for part in found)
        elif isinstance(node, ast.Call):
            found = [*_nouns(node)]
        elif judges and isinstance(node, ast.FunctionDef):
            if getattr(node.returns, "id", "") == "Verdict":
                found = [part for value in _own_returns(node) for part in _literals(value)]
        elif judges and isinstance(node, ast.Assign) and _names(node) == ["mistakes"]:
            found = [*_mistakes(node.value)]
        for part in found:
            if isinstance(part, ast.JoinedStr):
                raise SystemExit(f"line {part.lineno}: {ast.unparse(part)} needs tr(..., name=...)")
            yield part.value, part.lineno, formatted


def untranslated(source: str) -> Iterator[str]:
    """The sentences that a source prints, raises or warns of without `tr`; values become `{}`.

    >>> list(untranslated('raise ValueError(f"{name} is not known: choose another.")'))
    ['{} is not known: choose another.']
    """
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else node
        raised = isinstance(node, ast.Raise) and isinstance(call, ast.Call)
        if not (raised or _called(node) in ("print", "warn", "input")):
            continue
        for text in (text for part in call.args for text in _literals(part)):
            parts = getattr(text, "values", [text])
            shown = "".join(getattr(p, "value", "") if _is_text(p) else "{}" for p in parts)
            if SENTENCE.search(shown):
                yield shown


@functools.cache
def of_course() -> dict[str, tuple[list[str], bool]]:
    """Message -> the files that use it, and whether it is formatted."""
    found: dict[str, tuple[list[str], bool]] = {}

    def add(message: str, file: str, formatted: bool) -> None:
        files, before = found.setdefault(message, ([], formatted))
        if file not in files:
            files.append(file)
        if before != formatted:
            raise SystemExit(f"{file}: {message!r} is used with values and without")

    for path in sorted((ROOT / "utils").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        source = path.read_text(encoding="utf-8")
        found_here = of_source(source, judges=name.startswith(EXERCISES))
        for message, _, formatted in sorted(found_here, key=lambda each: each[1]):
            add(message, name, formatted)
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                for message, *_ in of_source("".join(cell["source"])):
                    add(message, f"notebooks/{path.name}", False)
    for lesson in LESSONS.values():
        add(lesson.box, "utils/course/notebooks.py", False)
    return found


def fields(message: str) -> list[str]:
    """The placeholders of a message in order of their names, with their formats.

    >>> fields("{name}: {share:.0%}")
    ['name', 'share:.0%']
    """
    parts = [part for part in string.Formatter().parse(message) if part[1] is not None]
    return sorted(
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in parts
    )


@functools.cache
def _not_in_tr() -> list[str]:
    """Texts of the code that are no messages and should be."""
    return [
        f"needs tr ({name}): {sentence!r}"
        for path in sorted((ROOT / "utils").rglob("*.py"))
        if (name := path.relative_to(ROOT).as_posix()) not in UNSEEN
        for sentence in untranslated(path.read_text(encoding="utf-8"))
    ]


def faults(translations: dict[str, str]) -> Iterator[str]:
    """What is wrong with the catalogue, one sentence per fault."""
    yield from _not_in_tr()
    used = of_course()
    for message in used:
        if not translations.get(message):
            yield f"not translated ({used[message][0][0]}): {message!r}"
    for message, translation in translations.items():
        if message not in used:
            yield f"used nowhere: {message!r}"
            continue
        if used[message][1] and translation and fields(message) != fields(translation):
            yield f"other placeholders: {message!r} -> {translation!r}"
        if message[-1:] in ".:" and translation and translation[-1:] != message[-1:]:
            yield f"another end: {message!r} -> {translation!r}"
        exempt = EXEMPT.get(message, ())
        for fault in glossary.misused(message, translation, exempt) if translation else ():
            yield f"{fault}: {message!r} -> {translation!r}"
        prose = re.sub(r"\{\w[^{}]*\}", "x", translation) if used[message][1] else translation
        for fault in vietnamese.faults(prose, repr(message)):
            yield str(fault)


def written(translations: dict[str, str]) -> str:
    """The text of the catalogue, sorted by file and then in order of the code."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    blocks = [HEADER]
    for message, (files, formatted) in of_course().items():
        lines = [f"#: {' '.join(files)}"] + ["#, python-brace-format"] * formatted
        lines += [f"msgid {quoted(message)}", f"msgstr {quoted(translations.get(message, ''))}"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def main() -> None:
    """Write the catalogue, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    text = CATALOGUE.read_text(encoding="utf-8") if CATALOGUE.exists() else ""
    translations = dict(entries(text))
    if not check and written(translations) != text:
        CATALOGUE.parent.mkdir(parents=True, exist_ok=True)
        CATALOGUE.write_text(written(translations), encoding="utf-8")
        translations = dict(entries(CATALOGUE.read_text(encoding="utf-8")))
    found = list(faults(translations))
    print(*found, f"{len(translations)} messages, {len(found)} faults", sep="\n")
    if check and (found or written(translations) != text):
        sys.exit("Run tools/messages.py and write the missing translations.")


if __name__ == "__main__":
    main()
