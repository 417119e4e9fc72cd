"""A run that is watched: callbacks, trackers, the progress line and looks at val. None of it moves the training."""
import json
import re
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from small import quiet
from test_resume import Cut, cut_before, fast, own_temporary_folder, place, same  # noqa: F401  some are fixtures

from unified_onehead.cli import main
from unified_onehead.core.config import METRICS, preset, replace_fields
from unified_onehead.core.testing import expect_error
from unified_onehead.learn.learner import Learner
from unified_onehead.run import folder as folders
from unified_onehead.run import stages
from unified_onehead.run.callbacks import Callback

STEPS = [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1)]


@pytest.fixture(scope="module")
def cfg(place):  # noqa: F811
    "A second per run; a checkpoint only where something asks for it."
    return replace_fields(preset("smoke"), backbone="noisy", width=24, size=32, synthetic_side=32, checkpoint_minutes=1e6,
                          threads=1, device="cpu", synthetic_dir=str(place / "minis"), epochs_seg=2, epochs_det=3, epochs_cls=1)


@pytest.fixture(scope="module")
def whole(cfg, place):  # noqa: F811
    "The folder of a run that nobody watched."
    stages.run_assignment(cfg, str(place / "unwatched"), say=quiet)
    return place / "unwatched"


class Diary(Callback):
    "Notes what it is told, and draws random numbers meanwhile."

    def __init__(self, fail_at=None, error=None):
        self.epochs, self.stages, self.results, self.fail_at, self.error = [], [], [], fail_at, error

    def on_epoch(self, row):
        import numpy
        import torch
        torch.rand(3), numpy.random.rand(3)
        self.epochs.append(dict(row))
        row["parts"].clear()  # what it was given is its own
        if row["step"] == self.fail_at:
            raise self.error

    def on_stage(self, row):
        self.stages.append(row)

    def on_finish(self, results):
        self.results.append(results)


def curve(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def looks(folder):
    return [row for row in folders.read_log(folder / "log.jsonl") if "val_epoch" in row]


def test_a_watched_run_is_the_same_run(cfg, whole, tmp_path):
    "Callbacks, a tracker and a look at val after every epoch: the same bits, scores and rows of epochs."
    diary, run = Diary(), tmp_path / "run"
    watched = replace_fields(cfg, val_every=1, log_with="tensorboard")
    results = stages.run_assignment(watched, str(run), say=quiet, callbacks=[diary])
    assert same(run, whole)
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in folders.read_log(f / "log.jsonl") if "epoch" in row]
             for f in (run, whole)]
    assert strip[0] == strip[1] and [(row["stage"], row["epoch"]) for row in strip[0]] == STEPS

    assert [row["step"] for row in diary.epochs] == [1, 2, 3, 4, 5, 6] and diary.results == [results]
    assert [(row["stage"], row["task"], row["step"]) for row in diary.stages] == [(0, "seg", 2), (1, "det", 5), (2, "cls", 6)]
    assert [row["scores"] for row in diary.stages] == list(results.matrix.values())

    seen = looks(run)
    assert [(row["stage"], row["val_epoch"]) for row in seen] == STEPS and not looks(whole)
    assert all({"epoch", "loss", "single_task"}.isdisjoint(row) and row["seconds"] > 0 for row in seen)
    last = {row["task"]: row["scores"] for row in seen}  # the averaged weights of a stage's end are those that it hands on
    assert all(last[task][metric] == results.matrix[task][metric] for task, metric in METRICS.items())

    assert curve(run, "train/loss") == [(s, pytest.approx(row["loss"])) for s, row in enumerate(strip[0], 1)]
    assert curve(run, "val/AP") == [(s, pytest.approx(row["scores"]["AP"])) for s, row in zip((3, 4, 5), seen[2:5])]
    assert [step for step, _ in curve(run, "stage/mIoU")] == [2, 5, 6]
    assert not [p for p in run.rglob("events.*") if p.parent.name != "tensorboard"], "all below one folder of the run"


@pytest.mark.parametrize("at, minutes, before, after", [(1, 0, 1, 0), (3, 0, 1, 1), (4, 1e6, 1, 1), (5, 0, 0, 1)])
def test_cut_anywhere_a_watched_run_goes_on_to_the_same_bits(cfg, whole, tmp_path, at, minutes, before, after):
    "The power goes in an epoch; either process looks at val, or one of them. Without checkpoints the stage begins again."
    first, second = (replace_fields(cfg, val_every=every, log_with="tensorboard" * every, checkpoint_minutes=minutes)
                     for every in (before, after))
    with cut_before(at, of="fit_epoch"), pytest.raises(Cut):
        stages.run_assignment(first, str(tmp_path / "run"), say=quiet)
    (tmp_path / "run" / folders.OWNER).unlink(missing_ok=True)
    stages.run_assignment(second, str(tmp_path / "run"), resume=True, say=quiet)
    assert same(tmp_path / "run", whole)
    if before and after:
        assert [(row["stage"], row["val_epoch"]) for row in looks(tmp_path / "run")] == STEPS, "also of the epochs before the cut"
        assert [step for step, _ in curve(tmp_path / "run", "train/loss")] == [1, 2, 3, 4, 5, 6], "each step once"


@pytest.mark.parametrize("step, error", [(1, ValueError("mine")), (2, KeyboardInterrupt()), (4, ValueError("mine"))])
def test_an_error_in_a_callback_ends_the_run_and_keeps_every_epoch(cfg, whole, tmp_path, error, step):
    "It comes out as it is, though the next checkpoint was far away; the run goes on after that epoch."
    with pytest.raises(type(error)) as raised:
        stages.run_assignment(cfg, str(tmp_path / "run"), say=quiet, callbacks=[Diary(step, error)])
    assert raised.value is error and any(entry.name == "on_epoch" for entry in raised.traceback)
    diary, epochs, real = Diary(), [], Learner.fit_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "fit_epoch", lambda self, *args: epochs.append(1) or real(self, *args))
        stages.run_assignment(cfg, str(tmp_path / "run"), resume=True, say=quiet, callbacks=[diary])
    assert len(epochs) == 6 - step and [row["step"] for row in diary.epochs] == list(range(step + 1, 7))
    assert same(tmp_path / "run", whole)


def test_an_error_after_a_stage_or_at_the_end(cfg, whole, tmp_path):
    class Late(Callback):
        def on_stage(self, row):
            assert row["task"] != "det"

        def on_finish(self, results):
            raise ValueError("too late")

    with pytest.raises(AssertionError):
        stages.run_assignment(cfg, str(tmp_path / "run"), say=quiet, callbacks=[Late()])
    with cut_before(1), pytest.raises(ValueError, match="too late"):  # one epoch is left: more would be a stage trained again
        stages.run_assignment(cfg, str(tmp_path / "run"), resume=True, say=quiet, callbacks=[Late()])
    assert same(tmp_path / "run", whole)
    folder, results = stages.run_or_resume(cfg, tmp_path, quiet)
    assert results.final and folder != tmp_path / "run"


def test_callbacks_reach_a_run_that_is_run_again_and_again(cfg, whole, tmp_path):
    diary = Diary()
    folder, results = stages.run_or_resume(cfg, tmp_path, quiet, callbacks=[diary])
    assert len(diary.epochs) == 6 and diary.results == [results] and same(folder, whole)
    again = Diary()
    assert stages.run_or_resume(cfg, tmp_path, quiet, callbacks=[again])[1] == results
    assert not again.epochs + again.results, "finished before: nothing happens"


def test_tasks_trained_alone_are_told_and_seen_too(cfg, tmp_path):
    diary, run = Diary(), tmp_path / "run"
    stages.run_assignment(replace_fields(cfg, single_task=True, val_every=2, log_with="tensorboard"), str(run), say=quiet,
                          callbacks=[diary])
    assert [row["step"] for row in diary.epochs] == list(range(1, 13)), "steps go on over all that is trained"
    assert [(row.get("single_task"), row["val_epoch"]) for row in looks(run)] == [(None, 2), (None, 2), ("seg", 2), ("det", 2)]
    assert [step for step, _ in curve(run, "single_det/train/loss")] == [9, 10, 11]
    assert len(diary.stages) == 3 and len(diary.results) == 1


@pytest.mark.parametrize("callbacks, words", [
    ([object()], "has none of the methods"), ([Diary], "write Diary()"), (Diary(), "a list")])
def test_what_would_never_be_called_is_refused_before_anything(cfg, tmp_path, callbacks, words):
    expect_error(lambda: stages.run_assignment(cfg, str(tmp_path / "run"), say=quiet, callbacks=callbacks), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value, words", [
    ("tensorbord", "is none of tensorboard, wandb, mlflow"), ("tensorboard,wandb", "[wandb]"),
    ("mlflow", 'pip install "unified-onehead[mlflow]"')])
def test_a_tracker_that_is_not_there_is_refused_before_anything(tmp_path, monkeypatch, capsys, value, words):
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, real=__import__("importlib").util.find_spec: (
        None if name in ("wandb", "mlflow") else real(name)))
    assert main(["run", "--preset", "smoke", f"log_with={value}"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_that_is_installed(cfg, tmp_path, monkeypatch, service):
    "Offline: its files lie below the run's folder, and a run that goes on is the same run."
    pytest.importorskip(service)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    watched, run = replace_fields(cfg, log_with=service), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        stages.run_assignment(watched, str(run), say=quiet, callbacks=[Diary(3, KeyboardInterrupt())])
    number = json.loads((run / "tracking.json").read_text())[service]
    stages.run_assignment(watched, str(run), resume=True, say=quiet)
    assert json.loads((run / "tracking.json").read_text())[service] == number
    if service == "wandb":
        assert [path.name.rpartition("-")[2] for path in sorted((run / "wandb").glob("offline-run-*"))] == [number, number]
    else:
        from mlflow.tracking import MlflowClient
        history = MlflowClient(f"sqlite:///{run / 'mlflow.db'}").get_metric_history(number, "train/loss")
        assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]


def test_the_line_of_a_run_says_how_long_all_of_it_takes(cfg, tmp_path, capfd):
    stages.run_assignment(cfg, str(tmp_path / "run"), say=quiet)
    drawn = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if line.strip()]
    assert len(drawn) == 2 * 3, "no terminal: the beginning and the end of each stage"
    assert "2/2" in drawn[1] and re.search(r"loss [\d.]+, \d+ min \d+ s left in all", drawn[1])
    assert "1/1" in drawn[-1] and "left in all" not in drawn[-1]


def test_the_report_shows_what_was_seen(cfg, tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr(stages, "write_report", lambda results, records, *_: rows.extend(records))
    stages.run_assignment(replace_fields(cfg, val_every=1), str(tmp_path / "run"), say=quiet)
    assert [(row["stage"], row["val_epoch"]) for row in rows if "val_epoch" in row] == STEPS
    assert [(row["stage"], row["epoch"]) for row in rows if "epoch" in row] == STEPS
