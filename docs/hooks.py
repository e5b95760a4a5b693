"""What the site holds beyond its Markdown: generated tables, pages that join by themselves, links that stay true.

MkDocs calls these hooks while it builds. Nothing is written into the folder of the pages.

- `<!-- generated:policy -->` in a page becomes the reference of the policy language, made from its JSON schema;
  `<!-- generated:support -->` the table of supported quantizer classes, made from the contract's cases.
- A page that the navigation does not name is listed under "Guides".
- A link to a file of the repository that is no page becomes its text and the file's path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_GUIDES = "Guides"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """List under "Guides" the pages that the navigation does not name; an empty section goes."""
    folder = Path(config["docs_dir"])
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    others = sorted(pages - set(_named(config["nav"])))
    for entry in list(config["nav"]):
        if _GUIDES in entry:
            entry[_GUIDES] = [*entry[_GUIDES], *({title_of(folder / page): page} for page in others)]
            if not entry[_GUIDES]:
                config["nav"].remove(entry)
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and settle links that leave the folder of the pages."""
    if "<!-- generated:policy -->" in markdown:
        markdown = markdown.replace("<!-- generated:policy -->", policy_reference())
    if "<!-- generated:support -->" in markdown:
        markdown = markdown.replace("<!-- generated:support -->", _support())
    here = Path(page.file.abs_src_path).parent
    return _LINK.sub(lambda found: _settled(found, here), markdown)


def title_of(path: Path) -> str:
    """Return the first heading of a page, its name where it has none."""
    found = re.search(r"^# +(.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1].replace("`", "").strip() if found else path.stem


def _named(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, Mapping):
        for entry in entries.values():
            yield from _named(entry)
    else:
        for entry in entries:
            yield from _named(entry)


def _settled(found: re.Match[str], here: Path) -> str:
    target = (here / found[2]).resolve()
    if target.is_relative_to(ROOT / "docs") or not target.exists():
        return found[0]  # a page, or a mistake, which the build tells
    path = f"`{target.relative_to(ROOT).as_posix()}`"
    return path if found[1].strip("`") in (target.name, path.strip("`")) else f"{found[1]} ({path})"


def _support() -> str:
    sys.path.insert(0, str(ROOT))
    try:
        from tests.contract.support import support_table

        return support_table()
    finally:
        sys.path.remove(str(ROOT))


# The policy language


def policy_reference() -> str:
    """Return Markdown: every key of a policy file with its values, default and meaning, from the JSON schema."""
    from collapse_guard.policies import actions, policy_json_schema

    schema = policy_json_schema()
    parts = schema["$defs"]
    blocks = [_table("The file", schema, parts)]
    titles = {"Sample": "`sample`", "Budget": "`budget`", "Rule": "`rules`: one rule", "Clear": "`clear`"}
    titles |= {"Verify": "`verify`", "LossBound": "`verify.guard`", "OfCause": "`on`"}
    blocks += [_table(title, parts[name], parts) for name, title in titles.items()]
    blocks.append(_rungs(parts))
    blocks += [_table(f"`{name}`", parts[name], parts, level=4) for name in actions()]
    return "\n\n".join(blocks)


def _rungs(parts: Mapping[str, Any]) -> str:
    first = next(each for each in parts["Rung"]["anyOf"] if each.get("type") == "object")
    options = {key: value for key, value in first["properties"].items() if key not in parts}
    shown = {"description": parts["Rung"]["description"], "properties": options}
    return _table("`ladder`: one rung", shown, parts) + "\n\nThe actions, with their parameters:"


def _table(title: str, part: Mapping[str, Any], parts: Mapping[str, Any], *, level: int = 3) -> str:
    head = [f"{'#' * level} {title}", "", part.get("description", "")]
    properties = part.get("properties", {})
    if not properties:
        return "\n".join([*head, "", "No parameters."])
    rows = ["", "| key | values | default | meaning |", "|---|---|---|---|"]
    for key, value in properties.items():
        needed = key in part.get("required", ())
        default = "required" if needed else _written(value.get("default", ""))
        cells = [f"`{key}`", _values(value, parts), default, value.get("description", "")]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*head, *rows])


def _written(value: Any) -> str:
    if value == "" or value == []:
        return "" if value == "" else "none"
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return f"`{text or ('null' if value is None else value if isinstance(value, (str, int, float)) else value[0])}`"


def _values(value: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Say what a key takes, in a few words."""
    if "$ref" in value:
        return f"see `{value['$ref'].rpartition('/')[2].lower()}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return _written(value["const"])
    if "anyOf" in value:
        return _either([_values(each, parts) for each in value["anyOf"]])
    kind = value.get("type")
    if kind == "string":
        return _text(str(value.get("pattern", "")))
    if kind == "array":
        return f"a list of {_values(value.get('items', {}), parts)}"
    if kind in ("integer", "number"):
        return _number(value)
    if kind == "object":
        return "`{" + ", ".join(f"{key}: ..." for key in value.get("properties", {})) + "}`"
    return "`null`" if kind == "null" else str(kind or "")


def _either(names: list[str]) -> str:
    if "a condition" in names:
        return "a condition, or a list of them"
    return " or ".join(dict.fromkeys(names))


def _text(pattern: str) -> str:
    if "trend" in pattern:
        return "a condition"
    if pattern.startswith("^\\d+"):
        return "a number of `steps`, `readings` or `epochs`" if "epochs" in pattern else "a number of `steps`"
    return "text"


def _number(value: Mapping[str, Any]) -> str:
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    words = "a whole number" if value["type"] == "integer" else "a number"
    if low is not None:
        words += f" above {low}" if "exclusiveMinimum" in value else f", {low} or more"
    if high is not None and high < 10**18:
        words += f", below {high}" if "exclusiveMaximum" in value else f", at most {high}"
    return words
