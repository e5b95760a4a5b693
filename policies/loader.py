"""From a preset, a file or a mapping to a checked `Policy`.

Everything wrong with a policy is reported at once, each problem with its line, its rule, what was expected, what is
there and the next move.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .diagnosis import mismatches_of
from .document import Document, read_document
from .errors import MismatchError, Place, PolicyError, Problem, quote, suggest
from .references import reference_mismatches
from .schema import Policy

__all__ = ["load_policy", "policy_text", "preset_names"]

_PRESETS = Path(__file__).parent


def preset_names() -> tuple[str, ...]:
    """Return the names of the policies that come with the library, sorted."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def load_policy(source: str | Path | Mapping[str, Any] | Policy) -> Policy:
    """Return a checked policy.

    Args:
        source: the name of a preset (see `preset_names`), the path of a YAML file, what such a file would hold as a
            mapping, or a `Policy`, which is returned as it is.

    Raises:
        PolicyError: a `ValueError` that lists every problem found.
    """
    if isinstance(source, Policy):
        return source
    if isinstance(source, Mapping):
        return _checked(Document("<mapping>", data=dict(source)))
    if isinstance(source, str) and source in preset_names():
        return _read(_PRESETS / f"{source}.yaml", source)
    if isinstance(source, str) and not _is_path(source):
        hint = suggest(source, preset_names()).replace("Known:", "Presets:")
        raise PolicyError([_unreadable(source, "policy", "a preset or the path of a file", quote(source), hint)])
    return _read(Path(source), str(source))


def policy_text(source: str) -> str | None:
    """Return what is written in a preset or a file, for showing lines of it; `None` where there is nothing to read."""
    path = _PRESETS / f"{source}.yaml" if source in preset_names() else Path(source)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None


def _is_path(source: str) -> bool:
    """Whether a text is meant as a path: it has a separator, the ending of a YAML file, or it exists."""
    return "/" in source or "\\" in source or source.endswith((".yaml", ".yml")) or Path(source).exists()


def _read(path: Path, name: str) -> Policy:
    """Read and check a file that problems call `name`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise PolicyError([_unreadable(name, "file", "text in UTF-8", got, "Save it as UTF-8.")]) from None
    except OSError as error:
        beside = sorted(each.name for each in path.parent.glob("*.y*ml"))
        hint = f"Beside it: {', '.join(beside[:8])}." if beside else f"Presets: {', '.join(preset_names())}."
        got = (error.strerror or str(error)).lower()
        raise PolicyError([_unreadable(name, "file", "a file that can be read", got, hint)]) from None
    return _checked(read_document(text, name))


def _checked(document: Document) -> Policy:
    """Turn a document into a policy, or raise everything that is wrong with it."""
    problems = list(document.problems)
    if document.data is not None or not problems:
        try:
            policy = Policy.model_validate(document.data)
        except ValidationError as error:
            mismatches = mismatches_of(error, Policy)
            mismatches += [wrong for wrong in _references(document.data) if wrong.place not in _places(mismatches)]
            follow = [_placed(document, mismatch) for mismatch in mismatches]
            unreadable = {(problem.line, problem.column) for problem in document.problems}
            problems += [each for each in follow if each.line is None or (each.line, each.column) not in unreadable]
        else:
            if not problems:
                return policy.with_source(document.file)
    raise PolicyError(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0)))


def _references(data: Any) -> list[MismatchError]:
    """Check what rules say of each other, although something else is wrong; nothing if that cannot be told."""
    rules = data.get("rules") if isinstance(data, Mapping) else None
    if not isinstance(rules, (list, tuple)):
        return []
    pairs: list[tuple[str, list[str]]] = []
    for rule in rules:
        name = rule.get("name") if isinstance(rule, Mapping) else None
        if not isinstance(name, str):
            return []
        inhibits = rule.get("inhibits")
        others = list(inhibits) if isinstance(inhibits, (list, tuple)) else []
        pairs.append((name, others if all(isinstance(other, str) for other in others) else []))
    return reference_mismatches(pairs)


def _places(mismatches: list[MismatchError]) -> set[Place]:
    return {mismatch.place for mismatch in mismatches}


def _placed(document: Document, mismatch: MismatchError) -> Problem:
    """Say where in a document a mismatch is."""
    line, column = document.position(mismatch.place, at_key=mismatch.at_key)
    place, rule = mismatch.place, None
    if len(place) > 1 and place[0] == "rules" and isinstance(place[1], int):
        entry = document.data["rules"][place[1]]
        name = entry.get("name") if isinstance(entry, Mapping) else None
        rule, place = name if isinstance(name, str) else f"#{place[1] + 1}", place[2:]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return Problem(
        file=document.file,
        line=line,
        column=column,
        rule=rule,
        message=dotted or ("the rule" if rule else "the policy"),
        expected=mismatch.expected,
        got=mismatch.got,
        hint=mismatch.hint,
    )


def _unreadable(file: str, message: str, expected: str, got: str, hint: str) -> Problem:
    return Problem(file=file, line=None, column=None, rule=None, message=message, expected=expected, got=got, hint=hint)
