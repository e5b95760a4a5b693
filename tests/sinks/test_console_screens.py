"""The console as a person sees it: screens of the reference story that were looked at, colours, verbosity, folding.

The screens lie in `screens/`, with their colour codes; `python -m tests.sinks.test_console_screens` writes them anew,
to be looked at again. Colours are those of the terminal, so that one screen serves light and dark ones; that they can
be read on both is computed from the palettes of common terminals.
"""

from __future__ import annotations

import io
import re
import sys
import time
import types
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.style import Style

from collapse_guard import ConsoleSink, Event, read_events
from collapse_guard.sinks.console import STYLES, Verbosity, wrapped

HERE = Path(__file__).parent
SCREENS = [("normal", 80), ("normal", 200), ("quiet", 80), ("detailed", 200)]
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def reference() -> list[Event]:
    """The events of the demo's guarded run, as its log holds them."""
    records = [dict(record) for record in read_events(HERE / "reference.jsonl")]
    return [Event(each.pop("event"), each.pop("step"), each, each.pop("time")) for each in records]


def screen(events: list[Event], verbosity: Verbosity = "normal", width: int = 80, **options: Any) -> str:
    text = io.StringIO()
    chosen: dict[str, Any] = {"force_terminal": True, "color_system": "standard", "legacy_windows": False} | options
    sink = ConsoleSink(Console(file=text, width=width, **chosen), verbosity=verbosity)
    for event in events:
        sink.write(event)
    return text.getvalue()


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.fixture(autouse=True)
def _in_greenwich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(("verbosity", "width"), SCREENS)
def test_the_screens_are_those_that_were_looked_at(verbosity: Verbosity, width: int) -> None:
    kept = (HERE / "screens" / f"{verbosity}-{width}.txt").read_text(encoding="utf-8")
    assert screen(reference(), verbosity, width) == kept


@pytest.mark.parametrize(("verbosity", "width"), SCREENS)
def test_no_line_is_wider_than_the_screen_and_no_word_is_broken(verbosity: Verbosity, width: int) -> None:
    text = bare(screen(reference(), verbosity, width))
    assert max(map(len, text.splitlines())) <= width
    words = {word for event in reference() for word in re.findall(r"[\w.]{6,}", str(event.fields.get("reason", "")))}
    shown = set(re.findall(r"[\w.]{6,}", text))
    assert {word for word in words if word in bare(screen(reference(), verbosity, 400))} <= shown | {
        word.rstrip(".") for word in shown
    }


def test_a_newcomer_reads_in_the_summary_alone_what_happened_and_why() -> None:
    summary = bare(screen(reference(), "quiet", 10_000)).partition("collapse_guard: summary")[2]
    for told in (
        "rule collapsed fired on quantizer (critical): perplexity 1.00 < 1.5",
        "Likely cause: code norms are 127 times the latents' norm",
        "reset_codes (codes placed anew on recent latents). At step 80, with perplexity 12.21",
        "it did not hold, and was undone",
        "a k-means codebook put in the place of the quantizer's own",
        "perplexity: how many of the K codes are in use",
        "cause         runaway_codebook (98% sure): multiply the smoothed cluster size back by n",
        "no reset can hold before",
        "change        in ReferenceQuantizer: n = self.usage.sum();",
        "under policy default (b0a2d56fca05) in mode act",
        "1 alert, 2 interventions (1 failed, 1 recovered)",
    ):
        assert told in summary


PALETTES = {  # black, red, green, yellow, cyan, white, then the terminal's own text and background
    "xterm, dark": ["000000", "cd0000", "00cd00", "cdcd00", "00cdcd", "e5e5e5", "ffffff", "000000"],
    "xterm, light": ["000000", "cd0000", "00cd00", "cdcd00", "00cdcd", "e5e5e5", "000000", "ffffff"],
    "VS Code, dark": ["000000", "cd3131", "0dbc79", "e5e510", "11a8cd", "e5e5e5", "cccccc", "1e1e1e"],
    "VS Code, light": ["000000", "cd3131", "00bc00", "949800", "0598bc", "ffffff", "333333", "ffffff"],
    "Terminal.app, light": ["000000", "990000", "00a600", "999900", "00a6b2", "ffffff", "000000", "ffffff"],
}


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("tone", STYLES)
def test_each_label_can_be_read_on_light_and_dark_terminals(tone: str, palette: str) -> None:
    """Contrast as WCAG 2 defines it; 3 is its bound for bold text."""
    colours = dict(
        zip(["black", "red", "green", "yellow", "cyan", "white", "text", "back"], PALETTES[palette], strict=True)
    )
    style = Style.parse(STYLES[tone])
    if style.reverse:
        front, back = colours["back"], colours["text"]
    else:
        assert style.color is not None
        assert style.bgcolor is not None
        front, back = colours[style.color.name], colours[style.bgcolor.name]
    light, dark = sorted((luminance(front), luminance(back)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_colour_where_none_is_wanted() -> None:
    text = screen(reference(), color_system="auto", _environ={"NO_COLOR": "1", "TERM": "xterm-256color"})
    codes = set(re.findall(r"\x1b\[([\d;]*)m", text))
    assert codes <= {"", "0", "1", "7", "1;7"}  # bold and reversed are no colours
    assert "\x1b" not in screen(reference(), force_terminal=False, color_system="auto")


def test_an_unknown_verbosity_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected a verbosity of quiet, normal, detailed, got 'loud'"):
        ConsoleSink(verbosity="loud")  # type: ignore[arg-type]


def alert(step: int, seconds: float, codebook: str = "vq") -> Event:
    fields = {"codebook": codebook, "rule": "low", "severity": "critical", "reason": "perplexity 1.00 < 2"}
    return Event("alert", step, fields, (START + timedelta(seconds=seconds)).isoformat())


def plainly(events: list[Event], verbosity: Verbosity = "normal") -> list[str]:
    text = bare(screen(events, verbosity, 400, force_terminal=False))
    return [line[21:].strip() if line.startswith("2026") else line.strip() for line in text.splitlines()]


def test_a_storm_is_folded_into_its_count_and_the_count_is_told_after_a_minute() -> None:
    storm = [alert(step, step / 10) for step in range(100)]
    later = Event("reading", 700, {"codebook": "vq", "perplexity": 3.0}, (START + timedelta(seconds=70)).isoformat())
    lines = plainly([*storm, later])
    assert [line.split(maxsplit=3)[:3] for line in lines] == [
        ["step", "0", "CRITICAL"],
        ["step", "1", "CRITICAL"],
        ["step", "2", "CRITICAL"],
        ["step", "3", "folded"],
        ["step", "99", "folded"],
    ]
    assert lines[-1].endswith("vq: low: CRITICAL: 97 from step 3 to 99")


def test_nothing_folded_is_kept_back_at_the_end() -> None:
    end = reference()[-1]
    summary = Event("summary", 101, end.fields, (START + timedelta(seconds=11)).isoformat())
    lines = plainly([*(alert(step, step / 10) for step in range(100)), summary])
    assert any(line.endswith("vq: low: CRITICAL: 97 from step 3 to 99") for line in lines)


def test_many_codebooks_at_once_are_counted_together_beyond_thirty() -> None:
    storm = [alert(50, 1.0, f"vq.{number}") for number in range(64)]
    lines = plainly([*storm, alert(9000, 100.0, "vq.0")])
    assert sum("CRITICAL" in line for line in lines) == 31
    assert [line for line in lines if "folded" in line][-1].endswith("entries of all kinds: 34 from step 50 to 50")
    assert len(lines) == 33


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        ("quiet", {"CRITICAL"}),
        ("normal", {"CRITICAL", "ACT", "FAILED", "RECOVERED"}),
        ("detailed", {"CRITICAL", "ACT", "FAILED", "RECOVERED", "READING", "PENDING", "WAITS"}),
    ],
)
def test_verbosity_says_which_events_are_printed(verbosity: Verbosity, shown: set[str]) -> None:
    found = (re.match(r"step +\d+  (\S+)", line) for line in plainly(reference(), verbosity))
    assert {line[1] for line in found if line} - {"TENDED"} == shown


def test_a_long_name_is_broken_after_a_dot_and_a_table_that_does_not_fit_becomes_blocks() -> None:
    name = "model.encoder.residual_vector_quantizer.layers.0"
    first = reference()[0]
    fields = dict(first.fields) | {"codebooks": [dict(first.fields["codebooks"][0]) | {"name": name}]}
    lines = bare(screen([Event("attached", 0, fields, first.time), alert(1, 1.0, name)])).splitlines()
    assert max(map(len, lines)) <= 80
    assert f"  codebook  {name}" in lines
    assert lines[-2].endswith(f"CRITICAL      {name}:")
    assert wrapped("a.bb.ccc.dddd", 8) == ["a.bb.", "ccc.dddd"]
    assert wrapped("x" * 20, 8) == ["x" * 8, "x" * 8, "x" * 4]


def test_in_a_notebook_entries_are_shown_through_the_notebooks_own_display(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    screen([alert(7, 0.0)], width=115, force_terminal=None, force_jupyter=True)
    (only,) = shown
    data = only._repr_mimebundle_((), ())
    assert "step      7  CRITICAL      vq: low: perplexity 1.00 &lt; 2" in re.sub("<[^>]*>", "", data["text/html"])
    assert "step      7  CRITICAL      vq: low: perplexity 1.00 < 2" in bare(data["text/plain"])


if __name__ == "__main__":
    import os

    os.environ["TZ"] = "UTC"
    time.tzset()
    (HERE / "screens").mkdir(exist_ok=True)
    for verbosity, width in SCREENS:
        text = screen(reference(), verbosity, width)  # type: ignore[arg-type]
        (HERE / "screens" / f"{verbosity}-{width}.txt").write_text(text, encoding="utf-8")
