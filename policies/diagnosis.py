"""From pydantic's errors to ours: what was expected, what is there, and the next move.

Pydantic says precisely where it stopped; its wording is for programmers. This module keeps the first and replaces the
second, knowing only the model that was being filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import MismatchError, MismatchesError, Place, no_text_key, quote, suggest

__all__ = ["mismatches_of"]

_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "string_type": lambda _: "text",
    "string_too_short": lambda _: "text that is not empty",
    "string_too_long": lambda limits: f"text of at most {limits['max_length']} characters",
    "string_pattern_mismatch": lambda limits: (
        "a name of letters, digits, _ and -, not beginning with a digit or -"
        if "A-Z" in limits["pattern"]
        else "a path of names with dots between them, such as `encoder.layers.0`"
    ),
    "tuple_type": lambda _: "a list",
    "too_short": lambda _: "a list that is not empty",
    "greater_than": lambda limits: f"a number above {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"a number of at least {limits['ge']:g}",
    "less_than": lambda limits: f"a number below {limits['lt']:g}",
    "less_than_equal": lambda limits: f"a number of at most {limits['le']:g}",
    "literal_error": lambda limits: limits["expected"].replace("'", "`"),
}


def mismatches_of(error: ValidationError, model: type[BaseModel], place: Place = ()) -> list[MismatchError]:
    """Translate everything that pydantic found wrong.

    Args:
        error: raised while `model` was being filled.
        model: whose fields are named in hints.
        place: where the filled value lies; it is put before the place of each mismatch.
    """
    found: list[MismatchError] = []
    for detail in error.errors(include_url=False):
        inner: Place = tuple(detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, (MismatchError, MismatchesError)):
            parts = cause.mismatches if isinstance(cause, MismatchesError) else (cause,)
            found += [part.below((*place, *inner)) for part in parts]
        else:
            found.append(_mismatch(detail, model, inner, at=str(place[-1]) if place else "").below(place))
    return found


def _mismatch(detail: ErrorDetails, model: type[BaseModel], place: Place, at: str) -> MismatchError:
    """Translate one error of pydantic's own; `at` is the key that the whole model stands at, if it stands at any."""
    kind, value = detail["type"], detail["input"]
    if kind == "invalid_key":
        return no_text_key(value, place[:-1])
    fields = _fields(_model_at(model, place[:-1])) if place else {}
    name = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        known = suggest(name, fields) if fields else "It takes none."
        known = "A policy merges nothing: write the keys out." if name == "<<" else known
        return MismatchError("a known key", quote(name), known, place=place, at_key=True)
    examples = fields[name].examples if name in fields else None
    example = f"`{name}: {examples[0]}`" if examples else ""
    if kind == "missing":
        return MismatchError("a value", "nothing", f"Add {example or f'`{name}: ...`'}.", place=place)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        inner = _model_at(model, place)
        keys = ", ".join(_fields(inner))
        expected = f"a mapping with some of the keys {keys}" if keys else "an empty mapping"
        return MismatchError(expected, quote(value), _as_mapping(name or at, value, inner), place=place)
    translate = _EXPECTED.get(kind)
    expected = translate(detail.get("ctx", {})) if translate else detail["msg"]
    if kind == "tuple_type":
        return MismatchError(expected, quote(value), _as_list(value), place=place)
    return MismatchError(expected, quote(value), f"Write {example}." if example else "", place=place)


def _as_list(value: object) -> str:
    """Say how a list is written, where there is something else."""
    if isinstance(value, Mapping):
        return "Begin each entry with a dash."
    is_short = isinstance(value, str) and value.isprintable() and len(value) <= 40
    return f"Write `[{value}]`." if is_short else ""


def _as_mapping(name: str, value: object, model: type[BaseModel]) -> str:
    """Say how a mapping is written where there is what one of its keys usually holds."""
    if not name:
        return "Begin with `version: 1`."
    is_short = isinstance(value, (str, int, float)) and str(value).isprintable() and len(str(value)) <= 40
    if not is_short or isinstance(value, bool) or name.isdigit():
        return ""
    key = next((key for key in _fields(model) if _holds(model, key, value)), None)
    return f"Write `{name}: {{{key}: {value}}}`." if key is not None else ""


def _holds(model: type[BaseModel], key: str, value: object) -> bool:
    try:
        model.model_validate({key: value})
    except ValidationError:
        return False
    return True


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model under the names that a policy uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """Return the model that a place inside `model` is filled with; list indices are stepped over."""
    for name in place:
        if isinstance(name, str):
            model = _model_in(_fields(model)[name].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the first model inside an annotation such as `tuple[Rule, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
