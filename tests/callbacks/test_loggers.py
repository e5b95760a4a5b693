"""What reaches the loggers of a Trainer: the real packages, and what they stored, read back."""

from __future__ import annotations

import csv
import json
import logging
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from collapse_guard import Event, read_events
from collapse_guard.callbacks import CollapseGuard, LoggerSink, scalars_of
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from tests.callbacks.models import QUIET_TRAINER

BOOK = "quantizer"


def guarded(folder: Path, *loggers: Logger) -> list[dict[str, Any]]:
    """Train the reference model guarded, with these loggers, and return its event log."""
    pl.seed_everything(0, verbose=False)
    guard = CollapseGuard("default", console=False, log_dir=folder)
    options = {**QUIET_TRAINER, "logger": list(loggers), "default_root_dir": folder, "max_steps": 130}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints at workers, and deprecations inside the loggers' packages
        trainer = pl.Trainer(callbacks=[guard], **options)
        trainer.fit(DigitsClassifier(ReferenceQuantizer()), digits_loaders(0)[0])
    return list(read_events(folder))


def expected(events: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """The numbers of a scalar as the event log has them."""
    return [(each["step"], each[key]) for each in events if each["event"] == "reading" and each[key] is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]], MLFlowLogger]]:
    """One guarded run with all four loggers at once."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would take the test half a minute to set up
    folder = tmp_path_factory.mktemp("run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        mlflow = MLFlowLogger("guarded", tracking_uri=(folder / "mlruns").as_uri())
        wandb = WandbLogger(save_dir=folder, offline=True)
        board, table = (
            TensorBoardLogger(folder, name="board", version=""),
            CSVLogger(folder, name="table", version="", flush_logs_every_n_steps=10),
        )
        events = guarded(folder, board, table, wandb, mlflow)
        wandb.experiment.finish()
        yield folder, events, mlflow
    patch.undo()


def test_tensorboard_stores_scalars_text_and_histograms(run: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, events, _ = run
    stored = EventAccumulator(str(folder / "board"), size_guidance={"tensors": 0, "histograms": 0})
    stored.Reload()
    for key in ("perplexity", "usage"):
        found = [(each.step, each.value) for each in stored.Scalars(f"codebook_{key}/{BOOK}")]
        assert found == [(step, pytest.approx(value)) for step, value in expected(events, key)]
    assert [each.value for each in stored.Scalars(f"codebook_intervention/{BOOK}")] == [1, 2, 3]
    (tag,) = (tag for tag in stored.Tags()["tensors"] if tag.startswith("collapse_guard"))
    texts = [each.tensor_proto.string_val[0].decode() for each in stored.Tensors(tag)]
    assert texts[0].startswith("alert collapsed on quantizer: perplexity 1.00 < 1.5")
    assert texts[1].startswith("reset_codes #1 applied on quantizer")
    histograms = stored.Histograms(f"codebook_uses/{BOOK}")
    told = [each for each in events if each["event"] == "reading" and "uses" in each]
    assert [int(sum(each.histogram_value.bucket)) for each in histograms] == [each["tokens"] for each in told]


def test_a_csv_holds_each_number_at_its_step(run: Any) -> None:
    folder, events, _ = run
    with (folder / "table" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = f"codebook_perplexity/{BOOK}"
    found = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    told = expected(events, "perplexity")
    assert [step for step, _ in found] == [step for step, _ in told]
    assert [value for _, value in found] == pytest.approx([value for _, value in told])
    assert [float(row[f"codebook_alert/{BOOK}"]) for row in rows if row[f"codebook_alert/{BOOK}"]] == [3, 2]


def test_mlflow_stores_scalars_and_what_happened_as_tags(run: Any) -> None:
    _, events, mlflow = run
    history = mlflow.experiment.get_metric_history(mlflow.run_id, f"codebook_perplexity/{BOOK}")
    assert [(each.step, each.value) for each in history] == expected(events, "perplexity")
    tags = mlflow.experiment.get_run(mlflow.run_id).data.tags
    told = [text for key, text in sorted(tags.items()) if key.startswith("collapse_guard.")]
    assert told[0].startswith("alert collapsed on quantizer")
    assert any(text.startswith("reset_codes #1 failed on quantizer") for text in told)


@pytest.mark.slow  # a database takes seconds to set up
def test_mlflow_stores_the_same_in_a_database(tmp_path: Path) -> None:
    """As MLflow wants it by now: its file store must be asked for by name."""
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        mlflow = MLFlowLogger("guarded", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
        events = guarded(tmp_path, mlflow)
    test_mlflow_stores_scalars_and_what_happened_as_tags((tmp_path, events, mlflow))
    assert (tmp_path / "mlflow.db").read_bytes().startswith(b"SQLite format 3")


def test_wandb_offline_stores_scalars_text_histograms_and_alerts(run: Any) -> None:
    folder, events, _ = run
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while not (found := wandb_records(path))[2]:  # a process of its own writes, and finish() does not wait for it
        assert time.monotonic() < deadline, "the file has no end"
        time.sleep(0.2)
    history, alerts, _ = found
    scalars = [each[f"codebook_perplexity/{BOOK}"] for each in history if f"codebook_perplexity/{BOOK}" in each]
    assert scalars == [pytest.approx(value) for _, value in expected(events, "perplexity")]
    texts = [each[f"collapse_guard/{BOOK}"] for each in history if f"collapse_guard/{BOOK}" in each]
    assert texts[0].startswith("alert collapsed on quantizer")
    histograms = [each[key] for each in history if (key := f"codebook_uses/{BOOK}/values") in each]
    assert sum(histograms[0]) == next(each["tokens"] for each in events if each["event"] == "reading")
    assert [(title, level) for title, _, level in alerts] == [
        ("collapse_guard: collapsed", "ERROR"),
        ("collapse_guard: stale_moments", "WARN"),
    ]
    text = alerts[0][1]
    assert "Likely cause" in text


def wandb_records(path: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]], bool]:
    """What a W&B file holds, and whether it has an end.

    LevelDB's log format: records in blocks of 32 KiB after a header of seven bytes.
    """
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2  # its classes are made when it is imported
    data, at, whole, has_end = path.read_bytes(), 7, b"", False
    history: list[dict[str, Any]] = []
    alerts: list[tuple[str, str, str]] = []
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            break
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = proto.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
            elif record.WhichOneof("record_type") == "alert":
                alerts.append((record.alert.title, record.alert.text, record.alert.level))
            has_end |= record.WhichOneof("record_type") == "exit"
    return history, alerts, has_end


class Broken:
    """A logger whose service is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")


class Remembers:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.metrics.append((dict(metrics), step))


def reading(step: int) -> Event:
    fields = {"codebook": "vq", "K": 4, "tokens": 6, "perplexity": 2.0, "usage": None, "health": "degraded"}
    return Event("reading", step, fields | {"uses": [3, 3, 0, 0]})


def test_a_logger_that_raises_is_switched_off_with_one_warning_and_the_others_go_on(caplog: Any) -> None:
    broken, works = Broken(), Remembers()
    sink = LoggerSink(lambda: [broken, works], lambda: 7)
    with caplog.at_level(logging.WARNING, "collapse_guard"):
        for step in range(3):
            sink.write(reading(step))
    assert broken.calls == 1
    assert works.metrics == [({"codebook_perplexity/vq": 2.0, "codebook_health/vq": 2.0}, 7)] * 3
    (warning,) = caplog.messages
    assert warning.startswith("Broken raised ConnectionError: no route to host; the guard logs nothing more to it")


def test_each_level_of_a_residual_has_markers_of_its_own() -> None:
    members = [{"codebook": "q.0", "outcome": "recovered"}, {"codebook": "q.1", "outcome": "failed"}]
    told = Event("outcome", 9, {"codebook": "q.0", "members": members, "attempt": 1, "action": "reset_codes"})
    assert dict(scalars_of(told)) == {"codebook_outcome/q.0": 1.0, "codebook_outcome/q.1": -1.0}
