"""What is wrong with text that is no YAML, said for people: where it went wrong, and the next move.

PyYAML stops where it cannot go on, which for a quote or a bracket left open is many lines below the mistake. This
module only chooses the place and the words; it reads nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from .errors import quote

__all__ = ["Flaw", "flaw_of"]

_CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}
_HINTS = {
    "mapping values are not allowed here": "It is indented further than the line above, or a text with a colon in it "
    "lacks its quotes.",
    "a comment or a line break": "A text that begins with > or | needs quotes.",
    "undefined alias": "Write the value out, or mark the first one with `&` and this name.",
    "found another document": "Leave `---` out: a file holds one policy.",
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """One mistake of the YAML itself: line and column, from 1, and the words of a `Problem`."""

    where: tuple[int, int]
    message: str
    expected: str
    got: str
    hint: str


def flaw_of(error: yaml.MarkedYAMLError, text: str) -> Flaw:
    """Return what to say of an error, given the whole text."""
    lines = text.splitlines()
    stopped, begun = error.problem_mark or error.context_mark, error.context_mark
    context, problem = error.context or "", error.problem or "unreadable"
    may_be_open = context == "while scanning a quoted scalar" or context.startswith("while parsing a flow")
    if begun is not None and may_be_open and (opened := _left_open(error, text)) is not None:
        return opened
    if begun is not None and context == "while scanning a simple key":
        written = quote(_line(lines, begun).strip())
        return Flaw(_place(begun), "YAML", "`key: value`", written, "Write a colon and a space after the key.")
    where = _place(stopped) if stopped is not None else (1, 1)
    written = _line(lines, stopped) if stopped is not None else ""
    if begun is not None and problem.startswith("expected <block end>") and "\t" not in written:
        expected = f"an indentation that fits line {begun.line + 1}, which begins in column {begun.column + 1}"
        got = f"{quote(written.strip())} in column {len(written) - len(written.lstrip()) + 1}"
        return Flaw(where, "YAML", expected, got, _level(lines, begun, written))
    message = f"YAML: {problem.removeprefix('but ')}"
    return Flaw(where, message, "well-formed YAML", quote(written.strip() or None), _next_move(problem, written))


def _next_move(problem: str, written: str) -> str:
    """Say what to do about a line that PyYAML could not go on with."""
    if "\t" in written:
        return "Indent with spaces." if "\t" not in written.lstrip() else "Write spaces instead of the tab."
    if "over:" in written:
        return "Put a comparison with `over:` in quotes, or leave out the colon."
    return next((hint for words, hint in _HINTS.items() if words in problem), "Look at the line above, too.")


def _left_open(error: yaml.MarkedYAMLError, text: str) -> Flaw | None:
    """Return the flaw of a quote or a bracket that is not closed; `None` where it may be another mistake."""
    begun, stopped = error.context_mark, error.problem_mark
    assert begun is not None, "the caller has seen to that"
    at_end = stopped is None or not text.splitlines()[stopped.line : stopped.line + 1]
    is_quote = error.context == "while scanning a quoted scalar"
    if not at_end and not is_quote and stopped is not None and stopped.line == begun.line:
        return None
    opening = text.splitlines()[begun.line][begun.column] if begun.line < len(text.splitlines()) else ""
    if opening not in _CLOSING:
        return None
    got = "the end of the file"
    if stopped is not None and not at_end:
        got = f"{quote(_line(text.splitlines(), stopped).strip())} in line {stopped.line + 1}"
    hint = f"It is opened here with `{opening}`; close it."
    return Flaw(_place(begun), "YAML", f"a closing `{_CLOSING[opening]}`", got, hint)


def _level(lines: list[str], begun: yaml.Mark, written: str) -> str:
    """Say how a line at the wrong level is put right."""
    is_list, is_entry = _line(lines, begun)[begun.column :].startswith("-"), written.lstrip().startswith("-")
    if is_list and not is_entry:
        return "What belongs to an entry of a list stands two spaces further in than its dash."
    if is_entry and not is_list:
        return "An entry of a list stands below the entries before it, all dashes in one column."
    return "Keys of one mapping, or dashes of one list, stand in one column."


def _line(lines: list[str], mark: yaml.Mark) -> str:
    return lines[mark.line] if mark.line < len(lines) else ""


def _place(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1
