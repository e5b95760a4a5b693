"""The callback in the YAML file of a real LightningCLI, of either Lightning."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from collapse_guard import GenericVQ, PolicyError, read_events
from collapse_guard.callbacks import CollapseGuard
from tests.callbacks.models import digits_module

BOTH = ("lightning.pytorch", "pytorch_lightning")
OWN: dict[str, Any] = {
    "version": 1,
    "name": "own",
    "rules": [{"name": "collapsed", "when": ["perplexity < 1.5", "tokens >= 64"], "ladder": ["alert"]}],
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `train_dataloader` does not have many workers", "ignore:Experiment logs directory .* exists"
)


def codes_of(output: Any) -> Tensor:
    """Where the reference quantizer returns its codes; named in a YAML file below."""
    codes: Tensor = output[1]
    return codes


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning calls it


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, lightning: str = BOTH[0]) -> Any:
    """Run a training program as a shell would: `train.py fit --config train.yaml`."""
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *arguments])
    cli = import_module(f"{lightning}.cli").LightningCLI
    return cli(digits_module(import_module(lightning)), seed_everything_default=False)


def write(name: str = "train.yaml", **init_args: Any) -> str:
    """Write the program's config with a guard of these arguments."""
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    guard = {"class_path": "collapse_guard.callbacks.CollapseGuard", "init_args": {"console": False, **init_args}}
    config = {"trainer": {"max_steps": 2, "accelerator": "cpu", "logger": False, "callbacks": [guard], **quiet}}
    Path(name).write_text(yaml.safe_dump(config))
    return name


def guard_of(cli: Any) -> CollapseGuard:
    (guard,) = [each for each in cli.trainer.callbacks if isinstance(each, CollapseGuard)]
    return guard


@pytest.mark.parametrize("lightning", BOTH)
@pytest.mark.parametrize("policy", ["conservative", "own.yaml", OWN], ids=["preset", "path", "mapping"])
def test_a_policy_is_a_preset_a_path_or_a_mapping(
    policy: Any, lightning: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("own.yaml").write_text(yaml.safe_dump(OWN))
    cli = command(monkeypatch, "--config", write(policy=policy), lightning=lightning)
    attached, *_, summary = read_events(tmp_path)
    assert attached["policy"] == ("conservative" if policy == "conservative" else "own")
    assert (attached["event"], summary["event"], summary["step"]) == ("attached", "summary", 2)
    assert isinstance(guard_of(cli), import_module(lightning).Callback)


def refused(monkeypatch: pytest.MonkeyPatch, policy: Any) -> str:
    with pytest.raises(PolicyError) as error:
        command(monkeypatch, "--config", write(policy=policy))
    assert not Path("config.yaml").exists()  # a run that was refused leaves nothing behind
    assert not Path("collapse_guard").exists()
    return str(error.value)


def test_a_broken_mapping_is_refused_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**OWN, "mode": "obsrve", "rules": [{**OWN["rules"][0], "when": "perplexty < 1.5"}]}
    mode, when = refused(monkeypatch, broken).splitlines()
    assert mode == "<mapping>: mode: expected `observe` or `act`, got 'obsrve'."
    assert when.startswith(
        "<mapping>: rule 'collapsed': when: expected a numeric field of a reading, got 'perplexty'. "
        "Did you mean `perplexity`? Known: step, K, D, tokens, perplexity,"
    )


def test_a_broken_file_is_refused_with_line_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text(
        "version: 1\nname: mine\nrules:\n  - name: low\n    when: perplexity < 5\n    for: 2 steps\n"
    )
    assert refused(monkeypatch, "mine.yaml").startswith("mine.yaml:6:10: rule 'low': for: expected ")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("defualt", "defualt: policy: expected a preset or the path of a file, got 'defualt'. Did you mean `default`?"),
        ("none.yaml", "none.yaml: file: expected a file that can be read, got no such file or directory."),
        (3, "<policy>: policy: expected the name of a preset, the path of a file, or a mapping, got 3. Presets:"),
        ([1, 2], "<policy>: policy: expected the name of a preset, the path of a file, or a mapping, got a list of 2."),
        (None, "<policy>: policy: expected the name of a preset, the path of a file, or a mapping, got nothing."),
    ],
)
def test_what_is_no_policy_is_refused_in_our_words(policy: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(monkeypatch, policy).startswith(message)


def test_a_subclass_is_refused_in_our_words_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(Path(write(policy="defualt")).read_text())
    config["trainer"]["callbacks"][0]["class_path"] = f"{__name__}.Derived"
    Path("train.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(PolicyError, match="Did you mean `default`"):
        command(monkeypatch, "--config", "train.yaml")


class Derived(CollapseGuard):
    """A user's own, with a constructor of its own."""

    def __init__(self, policy: str = "default", console: bool = True) -> None:
        super().__init__(policy, console=console)


def printed_config(monkeypatch: pytest.MonkeyPatch, capsys: Any, config: str) -> str:
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "--config", config, "--print_config")
    assert ended.value.code == 0
    text: str = capsys.readouterr().out
    return text


@pytest.mark.parametrize("policy", ["observe", OWN], ids=["preset", "mapping"])
def test_the_printed_config_is_the_config(policy: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With every kind of argument that the callback takes."""
    adapters = {"quantizer": {"table": "codebook", "codes": f"{__name__}.codes_of"}}
    files = {"log_dir": "copy", "run": None, "max_bytes": 1_000_000}
    sinks = [{"class_path": "collapse_guard.JsonLinesSink", "init_args": files}]
    bounds = {"verbosity": "quiet", "log_max_bytes": 1_000_000}
    given = {
        **bounds,
        "policy": policy,
        "log_dir": "logs",
        "loss": "loss",
        "sinks": sinks,
        "adapters": adapters,
        "seed": 3,
    }
    first = printed_config(monkeypatch, capsys, write(**given))
    Path("again.yaml").write_text(first)
    assert printed_config(monkeypatch, capsys, "again.yaml") == first
    written = yaml.safe_load(first)["trainer"]["callbacks"][0]["init_args"]
    absent = dict.fromkeys(("latents", "ema_sum", "ema_count", "commitment", "group", "level"))
    described = {**adapters["quantizer"], **absent, "metric": "l2", "decodes_raw": False}
    assert written == {**given, "console": False, "adapters": {"quantizer": described}}

    command(monkeypatch, "--config", "again.yaml")
    (log,), (copy,) = Path("logs").rglob("*.jsonl"), Path("copy").rglob("*.jsonl")
    attached = next(read_events(log))
    assert attached["codebooks"][0]["adapter"] == "explicit"
    assert attached == {**next(read_events(copy)), "run": attached["run"]}


def test_the_policy_may_be_named_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = command(monkeypatch, "--config", write(), "--trainer.callbacks.policy", "observe")
    assert guard_of(cli).policy.name == "observe"


def test_python_callers_are_refused_at_once() -> None:
    with pytest.raises(PolicyError, match="defualt"):
        CollapseGuard("defualt")
    with pytest.raises(PolicyError, match="expected the name of a preset, the path of a file, or a mapping, got 3"):
        CollapseGuard(3)  # type: ignore[arg-type]
    description = GenericVQ(table="codebook", codes=codes_of)
    assert CollapseGuard("observe", adapters={"quantizer": description}).policy.mode == "observe"
