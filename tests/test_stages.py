"""Stages as data: other orders, parts, repetitions, two tasks at once; and networks that learn on."""
import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
import small
from small import quiet

from unified_onehead import Predictor
from unified_onehead.cli import main
from unified_onehead.core.config import METRICS, TASKS, preset, replace_fields
from unified_onehead.core.testing import expect_error
from unified_onehead.deploy.export import export_model
from unified_onehead.deploy.output import Writer
from unified_onehead.deploy.pretrained import save_pretrained
from unified_onehead.deploy.uploads import as_predictor
from unified_onehead.learn.checkpoint import load_model, save_model
from unified_onehead.run import stages
from unified_onehead.run.predict import evaluate

ORDERS = [("cls", "det", "seg"), ("det", "seg", "cls"), ("seg+det", "cls"), ("seg", "cls"), ("det",)]
FIELDS = {"seg": "segmentation", "det": "detection", "cls": "classification"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module", autouse=True)
def fast():
    "Small backbones, and no clock."
    with small.fast():
        yield


@pytest.fixture(scope="module")
def cfg(place):
    return replace_fields(preset("smoke"), backbone="plain", width=32, threads=1, device="cpu", epochs_seg=2, epochs_det=2,
                          epochs_cls=2, synthetic_dir=str(place / "minis"))


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def answers(path, images):
    "What a saved network says."
    with torch.no_grad():
        return load_model(path)[0](images)


@pytest.fixture(scope="module")
def runs(cfg, place):
    "A run for each of ORDERS, under isolation: which promises that nothing learned moves by a bit."
    found = {}
    for order in ORDERS:
        out = place / "-".join(order)
        found[order] = out, stages.run_assignment(replace_fields(cfg, stages=order, strategy="isolation"), str(out), say=quiet)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_isolation_keeps_what_is_learned_in_any_order(runs, pictures, order):
    out, results = runs[order]
    learned = {}
    for number, stage in enumerate(order, 1):
        now = answers(out / f"stage{number}.pt", pictures)
        for field, before in learned.items():
            assert torch.equal(getattr(now, field), before), f"{field} moved in the stage of {stage}"
        learned.update({FIELDS[task]: getattr(now, FIELDS[task]) for task in stage.split("+")})
    assert list(results.matrix) == list(order) and results.reproduced


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_not_learned_is_absent(runs, pictures, order, tmp_path):
    out, results = runs[order]
    tasks = [task for task in TASKS if any(task in stage for stage in order)]
    given = answers(out / "model.pt", pictures)
    assert {task: getattr(given, field).shape[1] > 0 for task, field in FIELDS.items()} == {t: t in tasks for t in TASKS}
    assert [m for m in METRICS.values() if results.final[m] is not None] == [METRICS[task] for task in tasks]
    predictor = Predictor(out)
    answer = predictor(np.zeros((50, 70, 3), np.uint8))
    assert [part is None for part in (answer.boxes, answer.mask, answer.probs)] == [t not in tasks for t in ("det", "seg", "cls")]
    assert answer.plot().shape == (50, 70, 3) and json.dumps(answer.to_dict())
    Writer(tmp_path / "out", predictor.classes, boxes="det" in tasks, masks="seg" in tasks, table=True).add(answer)
    if len(tasks) < 3:
        for act in (lambda: export_model(predictor.trained, predictor.cfg, predictor.classes, tmp_path / "m.onnx"),
                    lambda: save_pretrained(tmp_path / "saved", predictor.trained, predictor.cfg, predictor.classes),
                    lambda: as_predictor(predictor)):
            expect_error(act, "needs all three tasks, and this network has not learned")
        expect_error(lambda: Writer(tmp_path / "b", predictor.classes, boxes="det" not in tasks, masks="seg" not in tasks),
                     "this network has not learned")


def test_rules_are_judged_where_they_apply(runs):
    rules = {rule["name"]: rule for rule in runs["seg", "cls"][1].rules}
    assert rules["schedule: order"]["pass"] is False and rules["schedule: order"]["note"] == "not the assignment's plan"
    assert rules["forgetting: AP"]["pass"] is None and rules["forgetting: AP"]["note"].startswith("not the assignment's plan")
    assert rules["data: images"]["pass"] is None and rules["schedule: measured"]["value"] == "3 of 3 scores"
    assert {rule["name"]: rule for rule in runs["cls", "det", "seg"][1].rules}["schedule: measured"]["value"] == "6 of 6 scores"
    text = (runs["seg", "cls"][0] / "report.md").read_text()
    assert "**AP**" not in text and "| after stage | mIoU | AP | Top1 |" in text


def test_a_task_has_its_turn_again(cfg, place, pictures):
    out = place / "again"
    again = replace_fields(cfg, stages=("seg", "det", "cls", "seg:3"), strategy="isolation")
    results = stages.run_assignment(again, str(out), say=quiet)
    assert [stage["name"] for stage in results.stages] == list(results.matrix) == ["1:seg", "det", "cls", "4:seg"]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows if "epoch" in row].count("4:seg") == 3, "epochs of its own"
    before, after = (answers(out / f"stage{n}.pt", pictures) for n in (3, 4))
    assert torch.equal(before.detection, after.detection) and torch.equal(before.classification, after.classification)
    assert not torch.equal(before.segmentation, after.segmentation), "it has learned"
    assert results.baseline["mIoU"] == results.matrix["4:seg"]["mIoU"], "held against its last turn"
    text = (out / "report.md").read_text()
    assert "| 1: segmentation |" in text and "| 4: segmentation |" in text


def test_a_cut_in_a_repeated_stage_is_resumed(cfg, place):
    plan = replace_fields(cfg, stages=("seg", "det", "seg"), checkpoint_minutes=0.0)
    whole = stages.run_assignment(plan, str(place / "whole"), say=quiet)
    fit, count = stages.Learner.try_epoch, []

    def unplugged(*args):
        count.append(1)
        if len(count) == 6:  # the second epoch of the third stage
            raise KeyboardInterrupt
        return fit(*args)

    with patch.object(stages.Learner, "try_epoch", unplugged), pytest.raises(KeyboardInterrupt):
        stages.run_assignment(plan, str(place / "cut"), say=quiet)
    said = []
    cut = stages.run_assignment(plan, str(place / "cut"), resume=True, say=said.append)
    assert "resumed after 1:seg, det and 1 of 2 epochs of stage 3" in said and cut.matrix == whole.matrix
    one, other = (load_model(place / name / "model.pt")[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_more_stored_images_than_the_assignment_allows(cfg, place):
    results = stages.run_assignment(replace_fields(cfg, replay=12, stages=("seg", "det")), str(place / "replay"), say=quiet)
    rule = next(rule for rule in results.rules if rule["name"] == "remedy: replay")
    assert rule["value"] == "12 in all" and rule["pass"] is False


@pytest.fixture(scope="module")
def week(cfg, place):
    "A network that segments and detects, and its folder."
    out = place / "week"
    return out, stages.run_assignment(replace_fields(cfg, stages=("seg", "det")), str(out), say=quiet)


def test_learning_a_task_later_forgets_nothing_under_isolation(cfg, place, week, pictures):
    later = replace_fields(cfg, stages=("cls",), strategy="isolation", init=str(week[0] / "model.pt"), single_task=True)
    said = []
    results = stages.run_assignment(later, str(place / "later"), say=said.append)
    old, new = answers(week[0] / "model.pt", pictures), answers(place / "later" / "model.pt", pictures)
    assert torch.equal(old.segmentation, new.segmentation) and torch.equal(old.detection, new.detection)
    assert old.classification.shape == (2, 0) and new.classification.shape == (2, 10)
    assert list(results.matrix) == ["start", "cls"] and results.matrix["start"]["mIoU"] == week[1].final["mIoU"]
    assert results.final["mIoU"] == week[1].final["mIoU"] and results.final["AP"] == week[1].final["AP"]
    assert set(results.single_task) & {*METRICS.values()} == {"Top1"}, "held against a run from scratch, too"
    assert results.weights["name"] == "model.pt (begun from none)"
    assert any(line.startswith("before stage 1: mIoU") for line in said)
    assert "| start |" in (place / "later" / "report.md").read_text()


def test_learning_on_is_resumed_with_the_same_network_only(cfg, place, week, tmp_path):
    later = replace_fields(cfg, stages=("cls",), init=str(week[0] / "model.pt"))
    with patch.object(stages, "collect", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        stages.run_assignment(later, str(tmp_path / "run"), say=quiet)
    net, made, classes, _ = load_model(week[0] / "model.pt")
    with torch.no_grad():
        net.neck.logits[0, 0] += 0.5
    save_model(tmp_path / "other.pt", net, made, classes)
    other = replace_fields(later, init=str(tmp_path / "other.pt"))
    expect_error(lambda: stages.run_assignment(other, str(tmp_path / "run"), resume=True, say=quiet), "the start weights:")
    results = stages.run_assignment(later, str(tmp_path / "run"), resume=True, say=quiet)
    assert list(results.matrix) == ["start", "cls"]


def test_more_classes_of_a_task(cfg, place, week, pictures):
    first = replace_fields(cfg, stages=("det",), det_classes=("red_circle", "blue_star"))
    stages.run_assignment(first, str(place / "two"), say=quiet)
    wide = ("green_ring", "blue_star", "red_circle")
    said = []
    later = replace_fields(cfg, stages=("det",), det_classes=wide, init=str(place / "two" / "model.pt"), epochs_det=1, lr=1e-9)
    stages.run_assignment(later, str(place / "three"), say=said.append)
    assert any("learning on: detection: further classes green_ring" in line for line in said)
    old, new = (answers(place / name / "model.pt", pictures).detection for name in ("two", "three"))
    assert torch.allclose(old[:, [0, 1, 2, 3, 4, 6, 5]], new[:, [0, 1, 2, 3, 4, 6, 7]], atol=1e-3), "at their new places"


def test_the_command_line_takes_stages_and_init(place, week, tmp_path, capsys):
    settings = ["stages=cls", "backbone=plain", "width=32", "threads=1", "epochs_cls=1", f"synthetic_dir={place / 'minis'}"]
    command = ["run", "--preset", "smoke", "--device", "cpu", "--init", str(week[0] / "model.pt"), "--out", str(tmp_path / "run")]
    assert main([*command, *settings]) == 0
    assert "before stage 1: mIoU" in capsys.readouterr().out
    assert main(["run", "--preset", "smoke", "stages=depth"]) == 2
    assert "'depth' is no stage" in capsys.readouterr().err


def test_a_network_of_one_task_is_evaluated(runs, place, capsys):
    root = next(place.glob("minis-*"))
    told = []
    scores = evaluate(runs["det",][0] / "model.pt", root, say=told.append)
    assert scores["mIoU"] is scores["Top1"] is None and scores["AP"] == runs["det",][1].final["AP"]
    assert [line for line in told if "this network has not learned it" in line] == [
        f"note: {task} is not measured: this network has not learned it" for task in ("segmentation", "classification")]
    assert main(["eval", "--weights", str(runs["det",][0] / "model.pt"), "--data-root", str(root), "--tasks", "det"]) == 0
    assert "mAP" in capsys.readouterr().out
