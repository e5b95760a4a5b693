"""The schema for editors: takes what the loader takes, and names what a typo would be taken for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from collapse_guard.policies import load_policy, policy_json_schema, preset_names
from tests.checkout import ROOT
from tests.policies.series import rule

SCHEMA = policy_json_schema()
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value satisfies a schema: the keywords that ours uses, as the specification defines them."""
    if "$ref" in schema and not accepts(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], value):
        return False
    if "anyOf" in schema and not any(accepts(each, value) for each in schema["anyOf"]):
        return False
    if "type" in schema and (not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool)):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(known):
            return False
        return all(accepts(known[key], item) for key, item in value.items() if key in known)
    if isinstance(value, list):
        is_long_enough = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return is_long_enough and all(accepts(schema.get("items", {}), item) for item in value)
    if isinstance(value, str):
        is_long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return is_long_enough and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)):
        least, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        most, below = schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1)
        return bool(least <= value <= most and above < value < below)
    return True


def keywords(value: Any) -> set[str]:
    """Every word of JSON Schema in use."""
    if isinstance(value, list):
        return set[str]().union(*map(keywords, value))
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for key, item in value.items():
        found |= set[str]().union(*map(keywords, item.values())) if key in ("properties", "$defs") else keywords(item)
    return found


def test_the_checker_of_this_test_knows_every_keyword() -> None:
    checked = {"$ref", "anyOf", "type", "enum", "const", "properties", "required", "additionalProperties", "items"}
    checked |= {
        "minItems",
        "maxItems",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    }
    assert keywords(SCHEMA) - checked <= {"$schema", "$defs", "title", "description", "default", "examples"}


def test_it_is_plain_json_without_loose_ends() -> None:
    text = json.dumps(SCHEMA)
    referred = set(re.findall(r'"#/\$defs/(\w+)"', text))
    assert referred == set(SCHEMA["$defs"])


@pytest.mark.parametrize("name", preset_names())
def test_it_takes_every_preset(name: str) -> None:
    text = (ROOT / "policies" / f"{name}.yaml").read_text(encoding="utf-8")
    assert accepts(SCHEMA, yaml.safe_load(text.replace(" on: ", ' "on": ')))  # to this parser a bare `on` is true


@pytest.mark.parametrize(
    "ladder",
    [
        ["alert"],
        [{"reset_codes": None}],
        [{"reset_codes": {"scope": "all", "refill": 1}}, "fallback_tokenizer"],
        [{"decay_commitment": {"factor": 0.5}, "repeat": 3, "within": "2 epochs"}],
    ],
)
def test_it_takes_every_way_to_write_a_rung(ladder: list[Any]) -> None:
    written = {"version": 1, "rules": [rule(ladder=ladder)]}
    assert load_policy(written).rules
    assert accepts(SCHEMA, written)


@pytest.mark.parametrize(
    "fields",
    [
        {"when": "perplexity"},
        {"when": "perplexity < low"},
        {"for": 0},
        {"for": "2"},
        {"cooldown": 100},
        {"cooldown": "100 minutes"},
        {"severity": "loud"},
        {"ladder": ["pray"]},
        {"ladder": [{"reset_codes": {"scope": "some"}}]},
        {"ladder": [{"reset_codes": None, "alert": None}]},
        {"ladder": [{"decay_commitment": {"factor": 1}}]},
        {"laddder": []},
    ],
)
def test_it_refuses_what_the_loader_refuses(fields: dict[str, Any]) -> None:
    written = {"version": 1, "rules": [rule() | fields]}
    with pytest.raises(ValueError, match="expected"):
        load_policy(written)
    assert not accepts(SCHEMA, written)


def test_defaults_are_written_as_in_a_file() -> None:
    assert SCHEMA["$defs"]["Sample"]["properties"]["every"]["default"] == "50 steps"
    assert SCHEMA["$defs"]["Rung"]["anyOf"][0]["enum"][0] == "reset_codes"
    assert SCHEMA["$defs"]["Rule"]["description"] == (
        "One rule: what is wrong, for how long, how loudly to say so, and what to do about it."
    )
