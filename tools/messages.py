"""Keep the catalogue of what the code prints, i18n/vi/LC_MESSAGES/course.po, and the code in step.

    python tools/messages.py            # add the new messages without a translation, drop the rest
    python tools/messages.py --check    # change nothing; exit 1 if a message lacks its translation

A message is a literal in a call of `tr` or `later`, a sentence that a judge in utils/exercises
returns or names a mistake with, or the text of a box on the map of the course.
"""

import argparse
import ast
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
from utils.course.paths import ROOT

HEADER = """# What the code prints to students, in Vietnamese: each message and its translation.
# `python tools/messages.py` adds new messages; write their msgstr by hand.
msgid ""
msgstr ""
"Language: vi\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"""
EXERCISES = "utils/exercises"
# These judges and the votes are being rewritten: their messages enter the catalogue afterwards.
LATER = ("notebook_01.py", "notebook_02.py", "notebook_07.py")


def _literals(node: ast.AST | None) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The texts that an expression can be: itself, or either branch of a choice."""
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
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
        elif judges and isinstance(node, ast.FunctionDef):
            if getattr(node.returns, "id", "") == "Verdict":
                found = [part for value in _own_returns(node) for part in _literals(value)]
        elif judges and isinstance(node, ast.Assign) and _names(node) == ["mistakes"]:
            found = [*_mistakes(node.value)]
        for part in found:
            if isinstance(part, ast.JoinedStr):
                raise SystemExit(f"line {part.lineno}: {ast.unparse(part)} needs tr(..., name=...)")
            yield part.value, part.lineno, formatted


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
        judges = name.startswith(EXERCISES) and path.name not in LATER
        found_here = of_source(path.read_text(encoding="utf-8"), judges)
        for message, _, formatted in sorted(found_here, key=lambda each: each[1]):
            add(message, name, formatted)
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


def faults(translations: dict[str, str]) -> Iterator[str]:
    """What is wrong with the catalogue, one sentence per fault."""
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
        for fault in glossary.misused(message, translation) if translation else ():
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
