"""The JSON Schema of a policy file, for editors that complete and check YAML while it is typed.

An editor's check is a first look: what needs more than a schema (rules that inhibit strangers, rungs written twice) is
found by the loader only. Actions registered by the time of the call are in it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from .actions import Action, actions
from .duration import Duration
from .parts import Budget, Clear, LossBound, OfCause, Rung, Sample, Verify
from .schema import Policy, Rule

__all__ = ["policy_json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/{model}"


def policy_json_schema() -> dict[str, Any]:
    """Return the schema of what a policy file may hold, as plain data.

    >>> sorted(policy_json_schema()["properties"]["rules"]["items"])
    ['$ref']
    """
    schema = Policy.model_json_schema(by_alias=True, ref_template=_REFERENCE)
    definitions = schema.setdefault("$defs", {})
    _explain(Policy, schema)
    for part in (Budget, Clear, LossBound, OfCause, Rule, Rung, Sample, Verify):
        _explain(part, definitions[part.__name__])
    # The model of a rung is filled by a validator of its own; what it takes is written down here.
    options = {
        key: value for key, value in definitions["Rung"]["properties"].items() if key not in ("action", "params")
    }
    models = actions()
    for name, model in models.items():
        definitions |= _definitions_of(name, model)
    definitions["Rung"] = {
        "description": "One step of a ladder: an action, with its parameters and, beside it, options.",
        "anyOf": [
            {"type": "string", "enum": list(models)},
            *(_rung(name, options) for name in models),
        ],
    }
    definitions.pop("Action", None)
    tidied: dict[str, Any] = _tidied(schema)
    return {"$schema": _DIALECT} | tidied | {"title": "collapse_guard policy"}


def _definitions_of(name: str, model: type[Action]) -> dict[str, Any]:
    """Return the definition of an action's parameters, under its name, and those that it refers to."""
    own = model.model_json_schema(by_alias=True, ref_template=_REFERENCE)
    inner: dict[str, Any] = own.pop("$defs", {})
    _explain(model, own)
    return inner | {name: own}


def _explain(model: type[BaseModel], definition: Mapping[str, Any]) -> None:
    """Give each key the sentence that the model's docstring has on it: `name: what it is.`, several in a paragraph."""
    names = sorted(model.model_fields, key=len, reverse=True)
    any_name = "|".join(map(re.escape, names))
    section = inspect.getdoc(model) or ""
    text = " ".join(section.partition("Attributes:")[2].split())
    parts = re.split(rf"(?:^|(?<=[.;`]) )((?:{any_name})(?:, (?:{any_name}))*): ", text)
    for keys, sentence in zip(parts[1::2], parts[2::2], strict=True):
        for name in keys.split(", "):
            alias = model.model_fields[name].alias or name
            if alias in definition["properties"]:
                definition["properties"][alias]["description"] = sentence[:1].upper() + sentence[1:]


def _rung(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a rung with this action; without parameters it may stay empty."""
    params = {"anyOf": [{"$ref": _REFERENCE.format(model=name)}, {"type": "null"}]}
    return {
        "type": "object",
        "properties": {name: params, **options},
        "required": [name],
        "additionalProperties": False,
    }


def _tidied(value: Any, *, is_names: bool = False) -> Any:
    """Return a part of the schema as an editor shows it best.

    Of a docstring the first paragraph is left; titles that only repeat a key go; a default is written as in YAML, and
    not at all where it is a mapping of others.

    Args:
        value: the part.
        is_names: whether its keys are names that the policy uses, and no words of JSON Schema.
    """
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    if not isinstance(value, dict):
        return value
    if is_names:
        return {key: _tidied(item) for key, item in value.items()}
    tidied = {key: _tidied(item, is_names=key in ("properties", "$defs")) for key, item in value.items()}
    tidied.pop("title", None)
    if "description" in tidied:
        tidied["description"] = tidied["description"].partition("\n\n")[0].replace("\n", " ")
    if isinstance(default := tidied.get("default"), dict):
        del tidied["default"]
        if set(default) == {"count", "unit"}:
            tidied["default"] = str(Duration(**default))
    return tidied
