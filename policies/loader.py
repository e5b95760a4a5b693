"""From a preset, a file or a mapping to a checked `Policy`.

Everything wrong with a policy is reported at once, each problem with its line, its rule, what was expected, what is
there and the next move. Where one policy extends another, the other must be right by itself before this one is judged.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .diagnosis import mismatches_of
from .document import Document, document_of, read_document
from .errors import MismatchError, Place, PolicyError, Problem, dotted, quote, suggest
from .inheritance import overlaid
from .references import reference_mismatches
from .schema import Policy

__all__ = ["load_policy", "policy_text", "preset_names", "preset_tests"]

_PRESETS = Path(__file__).parent
_MOST_FILES = 8
_MOST_BYTES = 1_000_000


def preset_names() -> tuple[str, ...]:
    """Return the names of the policies that come with the library, sorted.

    Beside each lie its own unit tests, `<name>.test.yaml`, which are no policy.
    """
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml") if "." not in path.stem))


def preset_tests(name: str) -> Path:
    """Return the file with the unit tests of a preset, for `load_cases`.

    Raises:
        LookupError: if there is no such preset; the message lists those there are.
    """
    if name not in preset_names():
        raise LookupError(f"expected the name of a preset, got {name!r}. {_presets(name)}")
    return _PRESETS / f"{name}.test.yaml"


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
        return _checked(_extended(document_of(source, "<mapping>"), Path(), {}))
    if isinstance(source, str) and source in preset_names():
        return _preset(source)
    if isinstance(source, str) and not _is_path(source, Path()):
        raise PolicyError(
            [_unreadable(source, "policy", "a preset or the path of a file", quote(source), _presets(source))]
        )
    if not isinstance(source, (str, Path)):  # from a YAML file of another program, such as LightningCLI's
        expected = "the name of a preset, the path of a file, or a mapping"
        raise PolicyError([_unreadable("<policy>", "policy", expected, quote(source), _presets(""))])
    path = Path(source)
    return _checked(_extended(_read(path, str(source)), path.parent, {path.resolve(): str(source)}))


@functools.cache
def _preset(name: str) -> Policy:
    """Return a policy that comes with the library: worked out once, since nothing changes such a file, nor a policy."""
    return _checked(_extended(_preset_document(name), _PRESETS, {_path_of(name).resolve(): name}))


@functools.cache
def _preset_document(name: str) -> Document:
    return _read(_path_of(name), name)


def _path_of(preset: str) -> Path:
    return _PRESETS / f"{preset}.yaml"


def policy_text(source: str) -> str | None:
    """Return what is written in a preset or a file, for showing lines of it; `None` where there is nothing to read."""
    path = _path_of(source) if source in preset_names() else Path(source)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None


def _extended(document: Document, folder: Path, chain: Mapping[Path, str]) -> Document:
    """Lay a document over the policy that it extends, if it does.

    Args:
        document: as it was read.
        folder: what a relative path is relative to.
        chain: the files being extended, this one last, with the names that problems call them by.

    Raises:
        PolicyError: if the other policy cannot be used.
    """
    if not isinstance(document.data, Mapping) or document.data.get("extends") is None:
        return document
    written = document.data["extends"]

    def refuse(expected: str, got: str, hint: str) -> PolicyError:
        wrong = [MismatchError(expected, got, hint, place=("extends",)), *_own_mistakes(document.data)]
        return PolicyError(_sorted([*document.problems, *(_placed(document, each) for each in wrong)], document.file))

    readable = isinstance(written, str) and 0 < len(written) <= 1000 and written.isprintable()
    if not readable or (written not in preset_names() and not _is_path(written, folder)):
        raise refuse("a preset or the path of a file", quote(written), _presets(written if readable else ""))
    preset = written in preset_names()
    path = _path_of(written) if preset else folder / written
    name = written if preset else str(path)
    if path.resolve() in chain:
        names = list(chain.values())[list(chain).index(path.resolve()) :]
        raise refuse("no circle of extends", " -> ".join([*names, names[0]]), "Remove one of these.")
    if len(chain) >= _MOST_FILES:
        raise refuse(f"at most {_MOST_FILES} policies one over another", "more", "")
    try:
        read = _preset_document(written) if preset else _read(path, name)
    except PolicyError as error:
        (unreadable,) = error.problems
        raise refuse(unreadable.expected, unreadable.got, unreadable.hint) from None
    base = _extended(read, path.parent, {**chain, path.resolve(): name})
    try:
        _checked(base)
    except PolicyError as error:
        own = [*document.problems, *(_placed(document, each) for each in _own_mistakes(document.data))]
        raise PolicyError([*error.problems, *own]) from None
    merged, wrong = overlaid(base, document)
    merged.problems += [_placed(document, each) for each in wrong]
    return merged


def _own_mistakes(data: Mapping[str, Any]) -> list[MismatchError]:
    """Find what is wrong with a policy whatever it extends; what it leaves out may be said there."""
    try:
        Policy.model_validate({key: value for key, value in data.items() if key != "extends"})
    except ValidationError as error:
        may_be_there = [wrong for wrong in mismatches_of(error, Policy) if wrong.got != "nothing"]
        return [wrong for wrong in may_be_there if wrong.place[-1:] != ("remove",) and "inhibits" not in wrong.place]
    return []


def _presets(word: str) -> str:
    return suggest(word, preset_names()).replace("Known:", "Presets:")


def _is_path(source: str, folder: Path) -> bool:
    """Whether a text is meant as a path: it has a separator, the ending of a YAML file, or it exists."""
    return "/" in source or "\\" in source or source.endswith((".yaml", ".yml")) or _exists(folder / source)


def _exists(path: Path) -> bool:
    """Whether a path exists; one that cannot be (too long a name, a zero byte) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _read(path: Path, name: str) -> Document:
    """Read a file that problems call `name`."""
    try:
        text = _text(path)
    except UnicodeDecodeError as error:
        got, hint = f"byte {error.object[error.start]:#04x} at position {error.start}", "Save it as UTF-8."
        raise PolicyError([_unreadable(name, "file", "text in UTF-8", got, hint)]) from None
    except MismatchError as error:
        raise PolicyError([_unreadable(name, "file", error.expected, error.got, error.hint)]) from None
    except OSError as error:
        beside = sorted(each.name for each in path.parent.glob("*.y*ml") if not each.name.endswith(".test.yaml"))
        hint = f"Beside it: {', '.join(beside[:8])}." if beside else f"Presets: {', '.join(preset_names())}."
        got = (error.strerror or str(error)).lower()
        raise PolicyError([_unreadable(name, "file", "a file that can be read", got, hint)]) from None
    return read_document(text, name)


def _text(path: Path) -> str:
    """Return what is written in a file. Reading a pipe could block, and a device may never end: they are refused."""
    if "\0" in str(path):
        raise MismatchError("a file that can be read", "a name with a zero byte")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise MismatchError("a file that can be read", "a device or a pipe", "Copy it into a file.")
    if status.st_size > _MOST_BYTES:
        raise MismatchError(f"at most {_MOST_BYTES} bytes", str(status.st_size))
    return path.read_text(encoding="utf-8-sig")


def _checked(document: Document) -> Policy:
    """Turn a document into a policy, or raise everything that is wrong with it."""
    problems = list(document.problems)
    if isinstance(document.data, Mapping) and "tests" in document.data and "rules" not in document.data:
        place, hint = ("tests",), "Run `collapse-guard test` on it."
        wrong = MismatchError("a policy, with `rules`", "a file of policy tests", hint, place=place, at_key=True)
        raise PolicyError([*problems, _placed(document, wrong)])
    if document.data is not None or not problems:
        try:
            policy = Policy.model_validate(document.data)
        except ValidationError as error:
            mismatches = mismatches_of(error, Policy)
            mismatches += [wrong for wrong in _references(document.data) if wrong.place not in _places(mismatches)]
            follow = [_placed(document, mismatch) for mismatch in mismatches]
            unreadable = {(each.file, each.line, each.column) for each in document.problems}
            problems += [
                each for each in follow if each.line is None or (each.file, each.line, each.column) not in unreadable
            ]
        else:
            if not problems:
                return policy.with_source(document.file)
    raise PolicyError(_sorted(problems, document.file))


def _sorted(problems: list[Problem], first: str) -> list[Problem]:
    """Order problems as they stand in their files, beginning with the file `first`."""
    return sorted(problems, key=lambda each: (each.file != first, each.file, each.line or 0, each.column or 0))


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
    file, line, column = document.position(mismatch.place, at_key=mismatch.at_key)
    place, rule = mismatch.place, None
    if len(place) > 1 and place[0] == "rules" and isinstance(place[1], int):
        entry = document.data["rules"][place[1]]
        name = entry.get("name") if isinstance(entry, Mapping) else None
        rule, place = name if isinstance(name, str) else f"#{place[1] + 1}", place[2:]
    hint = mismatch.hint if file == document.file else f"{mismatch.hint} {document.file} extends it.".lstrip()
    return Problem(
        file=file,
        line=line,
        column=column,
        rule=rule,
        message=dotted(place) or ("the rule" if rule else "the policy"),
        expected=mismatch.expected,
        got=mismatch.got,
        hint=hint,
    )


def _unreadable(file: str, message: str, expected: str, got: str, hint: str) -> Problem:
    return Problem(file=file, line=None, column=None, rule=None, message=message, expected=expected, got=got, hint=hint)
