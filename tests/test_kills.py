"""The benchmark of kills: what it reads from a run's folder, what it counts, and that another model is not called equal."""
import json
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import kills  # noqa: E402

TASK = list(kills.EPOCHS)


def row(stage, epoch=None, seconds=1.0, **more):
    "A line of a log: an epoch, or an evaluation."
    last = {"epoch": epoch, "loss": 0.5, "seconds": seconds} if epoch else {"scores": {"AP": 0.5}}
    return {"stage": stage, "task": TASK[stage] if epoch else "evaluation", **last, **more}


def run_folder(folder, rows, tensors, matrix):
    "What a finished run leaves, as far as it is compared."
    (folder / "run").mkdir(parents=True)
    torch.save({"state_dict": tensors}, folder / "run" / "model.pt")
    (folder / "run" / "results.json").write_text(json.dumps({"matrix": matrix}))
    (folder / "run" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return kills.outcome(folder)


def test_only_what_is_equal_to_the_last_bit_is_equal(tmp_path):
    tensors, matrix = {"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"seg": {"mIoU": 0.5}}
    first = run_folder(tmp_path / "1", [row(0, 1), row(0)], tensors, matrix)
    again = run_folder(tmp_path / "2", [row(0, 1, seconds=9.0), row(0)], dict(reversed(tensors.items())), matrix)
    assert kills.compared(first, again) == {"model": True, "matrix": True, "log": True}, "times and order of names do not count"
    changed = {**tensors, "a": torch.tensor([1, 1, 1 + 2**-23])}
    for name, rows, state, scores in (("model", [row(0, 1), row(0)], changed, matrix),
                                      ("matrix", [row(0, 1), row(0)], tensors, {"seg": {"mIoU": 0.5000001}}),
                                      ("log", [row(0, 1), row(0, 1), row(0)], tensors, matrix)):
        found = kills.compared(first, run_folder(tmp_path / name, rows, state, scores))
        assert [part for part, same in found.items() if not same] == [name]
    reshaped = run_folder(tmp_path / "3", [row(0, 1), row(0)], {**tensors, "b": torch.zeros(4)}, matrix)
    assert not kills.compared(first, reshaped)["model"], "the same bytes in another shape"


def test_where_a_run_stands(tmp_path):
    def at(printed, rows=None, *files):
        for path in (tmp_path / "run").glob("*"):
            path.unlink()
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "printed.txt").write_text(printed)
        for name in files:
            (tmp_path / "run" / name).touch()
        if rows is not None:
            (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": 0, "ta')
        found = kills.where(tmp_path)
        return found["phase"], found["stage"], found["epoch"]

    first = [row(0, n) for n in range(1, kills.EPOCHS["seg"] + 1)]
    assert at("") == ("import and images", None, None)
    assert at("data: here\n") == ("network and folder", None, None)
    assert at("data: here\n", []) == ("decoding images", None, None)
    assert at("data: here\nmemory: enough\n", []) == ("training", 1, 1)
    assert at("memory: enough\n", first[:2]) == ("training", 1, 3), "half a line is none"
    assert at("memory: enough\n", first) == ("evaluation", 1, None)
    assert at("memory: enough\n", [*first, row(0)]) == ("checkpoint of the stage", 1, None)
    assert at("memory: enough\n", [*first, row(0)], "stage1.pt") == ("training", 2, 1)
    assert at("memory\nmeasuring what the report states\n", [*first, row(0)], "stage1.pt")[0] == "measuring times"
    assert at("measuring what\nevaluating model.pt\n", first)[0] == "evaluating model.pt"
    assert at("measuring what\nevaluating model.pt\ndrawing the figures\n", first)[0] == "figures and report"
    assert at("drawing the figures\n", first, "results.json")[0] == "after the report"


def test_what_was_trained_again():
    "Found: stage 1 whole, 3 epochs of stage 2. Logged: 5 epochs of it, 2 s each, and 0.5 s of the sixth."
    found = kills.kept("x\nresumed after seg\nresumed after seg and 3 of 7 epochs of stage 2\n")
    assert found == {1: kills.EPOCHS["seg"], 2: 3, 3: 0}
    rows = [row(0, n) for n in range(1, 6)] + [row(0)] + [row(1, n, seconds=2.0) for n in range(1, 6)]
    assert kills.again(rows, found, "training", 0.5) == {"epochs": 2, "seconds": 4.5}
    assert kills.again(rows, found, "evaluation", 0.5) == {"epochs": 2, "seconds": 4.0}, "an evaluation is no training"
    assert kills.kept("no checkpoint") == {1: 0, 2: 0, 3: 0} and kills.kept("resumed after seg, det\n")[2] == kills.EPOCHS["det"]


def test_a_summary_by_hand():
    def one(stage, phase, epochs, seconds, equal=True, half=()):
        return {"stage": stage, "epoch": None, "phase": phase, "again": {"epochs": epochs, "seconds": seconds},
                "traceback": False, "longest_epoch": 0.5, "half_written": list(half), "killed_at": seconds, "then": "resumed",
                "equal": {"model": equal, "matrix": True, "log": True}}

    rows = [one(1, "training", 1, 1.2), one(1, "training", 2, 1.6, half=[".last.pt.new"]), one(None, "import and images", 0, 0.0),
            one(2, "evaluation", 0, 0.0, equal=False)]
    found = kills.summary({"rows": rows, "interval": 0.9})
    assert found == {"n": 4, "equal": 3, "tracebacks": 0, "inside": 2, "cut_writes": 1, "epochs": 2, "seconds": 1.6, "within": 3,
                     "beyond": 0, "phases": {"stage 1: training": 2, "import and images": 1, "stage 2: evaluation": 1}}
    rows[1]["half_written"] = []
    assert kills.summary({"rows": rows, "interval": 0.9})["beyond"] == 1, "no write was cut"
    assert kills.table({"rows": rows})[2][-1] == "no: model" and kills.table({"rows": rows})[-1][-1] == "yes"


def test_moments_cover_the_run():
    found = kills.moments(60.0, 30, 0)
    assert found == kills.moments(60.0, 30, 0) != kills.moments(60.0, 30, 1)
    assert [int(moment // 2) for moment, _ in sorted(found)] == [*range(30)] and all(0 <= wait < 0.05 for _, wait in found)


@pytest.mark.parametrize("name, record", kills.read_records().items())
def test_the_committed_record(name, record):
    found = kills.summary(record)
    assert found["equal"] == found["n"] and found["tracebacks"] == 0 and found["beyond"] == 0
    assert record["commit"] and "+" not in record["commit"] and record["versions"]["torch"] and "cpu" in record["device"]
    phases = " ".join(found["phases"])
    assert found["inside"] >= 5 and all(f"stage {n}: training" in phases for n in (1, 2, 3)) and "import" in phases
