"""What the console shows: whole lines off a terminal, wrapped ones on it, and nothing that a name can smuggle in."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from collapse_guard import ConsoleSink, Event

FALLBACK = {"codebook": "vq", "action": "fallback_tokenizer", "step": 70, "attempt": 2}
READING = {"tokens": 640, "usage": 0.004, "K": 256, "ceiling": 205.0}
STORY = [
    Event(
        "attached",
        0,
        {
            "policy": "default",
            "mode": "act",
            "codebooks": [
                {
                    "name": "vq",
                    "K": 256,
                    "D": 64,
                    "adapter": "home-made",
                    "confidence": "confirmed",
                    "kind": "ema",
                    "metric": "l2",
                    "supports": ["monitor", "reset"],
                    "lacks": {"commitment": "no weight found"},
                },
            ],
            "unrecognised": [
                {
                    "name": "other",
                    "confidence": "unconfirmed",
                    "reason": "returns no codes",
                    "table": "weight",
                    "advice": "return them",
                }
            ],
            "idle_rules": [{"rule": "level_fallen", "codebooks": ["*.[1-9]", "*.[1-9][0-9]"]}],
        },
    ),
    Event("reading", 10, {"codebook": "vq"}),
    Event("pending", 10, {"codebook": "vq", "rule": "collapsed", "severity": "critical", "reason": "not yet"}),
    Event(
        "alert",
        20,
        {
            "codebook": "vq",
            "rule": "collapsed",
            "severity": "critical",
            "reason": "perplexity 1.00 < 1.5",
            "why": "codes are long",
            "reading": READING,
        },
    ),
    Event(
        "intervention",
        20,
        {
            "codebook": "vq",
            "rule": "collapsed",
            "attempt": 1,
            "action": "reset_codes",
            "result": "applied",
            "summary": "256 codes placed",
        },
    ),
    Event(
        "outcome",
        70,
        {
            "codebook": "vq",
            "action": "reset_codes",
            "attempt": 1,
            "outcome": "failed",
            "reason": "perplexity 1.00",
            "undone": [1],
        },
    ),
    Event(
        "intervention",
        70,
        {
            "codebook": "vq",
            "rule": "collapsed",
            "attempt": 2,
            "action": "fallback_tokenizer",
            "result": "refused",
            "summary": "no latents",
        },
    ),
    Event(
        "exhausted", 70, {"codebook": "vq", "rule": "collapsed", "severity": "critical", "reason": "every rung failed"}
    ),
    Event("skip", 80, {"codebook": "vq", "rule": "collapsed", "severity": "critical", "reason": "cooling down"}),
    Event(
        "skip",
        80,
        {
            "codebook": "vq",
            "rule": "collapsed",
            "severity": "critical",
            "action": "reset_codes",
            "reason": "observe mode: would reset_codes",
        },
    ),
    Event(
        "cleared",
        90,
        {"codebook": "vq", "rule": "collapsed", "severity": "critical", "reason": "perplexity 80.00 >= 10"},
    ),
    Event("fault", 95, {"where": "vq", "reason": "its probe raised"}),
    Event("resumed", 95, {"policy": "default", "policy_changed": True, "in_force": [FALLBACK]}),
    Event(
        "summary",
        100,
        {
            "codebooks": [
                {
                    "name": "vq",
                    "K": 256,
                    "health": "healthy",
                    "is_watched": True,
                    "first": {"perplexity": 1.0, "usage": 0.1},
                    "last": {"perplexity": 80.0, "usage": 0.9},
                }
            ],
            "interventions": [
                {
                    "codebook": "vq",
                    "step": 20,
                    "attempt": 1,
                    "action": "reset_codes",
                    "result": "failed",
                    "undone": True,
                }
            ],
            "ended_by": "KeyboardInterrupt",
            "in_force": [FALLBACK],
            "guard_seconds": 0.5,
            "run_seconds": 10.0,
            "guard_share": 0.05,
        },
    ),
]


def shown(events: list[Event], *, terminal: bool = False, width: int = 200) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    sink = ConsoleSink(console)
    for event in events:
        sink.write(event)
    sink.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_off_a_terminal_every_entry_is_one_searchable_line() -> None:
    lines = [line.rstrip() for line in shown(STORY, width=40).splitlines()]
    dated = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step ", line)]
    entries = [line[21:] for line in dated]
    assert "step     20  CRITICAL      vq: collapsed: perplexity 1.00 < 1.5" in entries
    assert "             why           codes are long" in lines
    assert (
        "             seen          640 tokens used 0.4% of 256 codes; uniform codes would show perplexity 205" in lines
    )
    assert "step     70  FAILED        vq: reset_codes #1: perplexity 1.00; undone: #1" in entries
    assert "step     70  REFUSED       vq: fallback_tokenizer #2: no latents" in entries
    assert "step     70  EXHAUSTED     vq: collapsed: every rung failed" in entries
    assert "step     80  SKIPPED       vq: collapsed: observe mode: would reset_codes" in entries
    assert "step     90  CLEARED       vq: collapsed: perplexity 80.00 >= 10" in entries
    assert "step     95  FAULT         vq: its probe raised" in entries
    resumed = (
        "policy default; the policy has changed since, the new one counts; fallback_tokenizer on vq stays in force"
    )
    assert f"step     95  RESUMED       {resumed}" in entries


def test_readings_holds_and_skipped_candidates_are_for_the_log_not_for_people() -> None:
    text = shown(STORY)
    assert "not yet" not in text
    assert "cooling down" not in text


def test_what_is_tended_is_for_the_log_and_its_end_for_people() -> None:
    refit = {"codebook": "vq", "action": "fallback_tokenizer", "summary": "refitted", "is_over": False}
    release = {"codebook": "vq", "action": "freeze_encoder", "summary": "released", "is_over": True}
    text = shown([Event("tended", 50, refit), Event("tended", 60, release)])
    assert "refitted" not in text
    assert "step     60  TENDED        vq: freeze_encoder: released" in text


def test_tables_show_what_is_watched_and_what_came_of_it() -> None:
    text = shown(STORY)
    assert "home-made (ema, l2) confirmed" in text
    assert "cannot        vq: commitment: no weight found" in text
    assert "not watched   other: returns no codes" in text
    assert "                           return them" in text
    assert "idle          level_fallen: exists on no codebook here: none is called *.[1-9] or *.[1-9][0-9]" in text
    (row,) = (line for line in text.splitlines() if line.startswith("  vq") and "80.0" in line)
    assert row.split() == ["vq", "256", "healthy", "(fallback)", "1.0", "-", "-", "80.0", "90.0%"]
    assert (
        "step 20: vq: reset_codes (codes placed anew on recent latents). At step 70, it did not hold, and was" in text
    )
    assert "step 20: rule collapsed fired on vq (critical): perplexity 1.00 < 1.5. Likely cause: codes are long" in text
    assert "summary after 100 steps, ended by KeyboardInterrupt, resumed at step 95" in text
    assert "vq stands on the codebook of fallback_tokenizer since step 70; its own update was kept out" in text
    assert "The guard took 0.50 s of 10.00 s (5.0%)." in text


def test_on_a_terminal_long_texts_wrap_beside_their_label() -> None:
    text = shown([Event("fault", 5, {"where": "vq", "reason": "word " * 40})], terminal=True, width=80)
    lines = text.rstrip().splitlines()
    assert len(lines) > 2
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert all(line.startswith(" " * 27) for line in lines[2:])
    assert re.match(r"\d\d:\d\d:\d\d {19}word", lines[1])


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "name", ["[bold red]vq[/]", "vq\x1b[31m\x1b]0;title\x07", "vq\r\nstep 1 CRITICAL", "[/nonsense]"]
)
def test_names_are_printed_as_text_and_cannot_steer_the_terminal(name: str, terminal: bool) -> None:
    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: name if key in ("name", "codebook", "where", "policy") else renamed(item)
                for key, item in value.items()
            }
        return [renamed(item) for item in value] if isinstance(value, list) else value

    text = shown(
        [Event(event.event, event.step, renamed(event.fields)) for event in STORY], terminal=terminal, width=300
    )
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert "\r" not in text
    if name.startswith("["):
        assert name in text


def test_bars_of_tqdm_are_taken_off_the_screen_and_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    with tqdm(total=3) as bar:
        bar.update()
        ConsoleSink(Console(width=100)).write(STORY[11])
    captured = capsys.readouterr()
    assert "FAULT         vq: its probe raised" in captured.out
    assert captured.err.count("1/3") >= 2
