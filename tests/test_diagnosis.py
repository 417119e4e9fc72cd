"""The suspected causes: what each case changes, the measured gradients by hand, files that are finished, refused, tabulated."""
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import diagnosis  # noqa: E402

from unified_onehead.backbone import MobileNetV2  # noqa: E402
from unified_onehead.cli import run_config  # noqa: E402
from unified_onehead.config import InputError, replace_fields  # noqa: E402
from unified_onehead.losses import detection_loss  # noqa: E402
from unified_onehead.stages import get_minis  # noqa: E402
from unified_onehead.synthetic import make_synthetic  # noqa: E402

TINY = ["size=64", "width=32", "views=1", "batch_size=4", "epochs_seg=2", "epochs_det=4", "epochs_cls=2", "replay=4",
        "replay_batch=2", "own_channels=false", "threads=1", "eval_batch=6", "agreement=0", "outline=0"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A data root and a file of start weights."
    folder = tmp_path_factory.mktemp("diagnosis")
    torch.manual_seed(0)
    torch.save(MobileNetV2().body.state_dict(), folder / "start.pt")
    return str(make_synthetic(folder / "minis", 0, 8, 6, 48)), str(folder / "start.pt")


@pytest.fixture(scope="module")
def base(start):
    return run_config(start[0], "smoke", TINY, weights=start[1], device="cpu")


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    "The reference and one cause."
    out = tmp_path_factory.mktemp("cases")
    for name in ("reference", "kd_too_strong"):
        diagnosis.run_case(name, base, out, every=1, say=lambda *_: None)
    return out


def test_gradient_norms_by_hand():
    "loss = sum of (w x)_i with x = (3, 4): each row's gradient is x, norm 5; two rows make sqrt(50)."
    w, other = torch.ones(2, 2, requires_grad=True), torch.ones(1, requires_grad=True)
    x = torch.tensor([3.0, 4.0])
    losses = {"det": (w[0] @ x), "seg": (w @ x).sum(), "kd_seg": 2 * (w[0] @ x), "cls": other.sum(), "none": torch.tensor(0.0)}
    norms = diagnosis.gradient_norms(losses, [w])
    assert norms == pytest.approx({"det": 5, "seg": math.sqrt(50), "kd_seg": 10, "cls": 0, "none": 0})
    losses["seg"].backward()
    assert torch.equal(w.grad, x.expand(2, 2)), "the graph is still there for the step"


def test_parts_are_grouped_by_who_asks():
    parts = {"box": torch.tensor(1.0), "conf": torch.tensor(2.0), "det_cls": torch.tensor(3.0), "kd_seg": torch.tensor(4.0)}
    groups = diagnosis.grouped(parts, {"box": 2.0, "conf": 1.0, "det_cls": 0.5})
    assert {k: float(v) for k, v in groups.items()} == {"det": 2 * 1 + 2 + 0.5 * 3, "kd_seg": 4}


def test_every_part_of_a_task_is_known(base):
    learner, _ = diagnosis.make_probe("reference", base, get_minis(base))
    assert set(learner.tasks["seg"].weights) <= set(diagnosis.TASK_OF)


def test_plain_loss_divides_by_all_cells():
    "One box of 64 px on 32 x 32 cells has 9 positives; zero logits give log 10 for each, and log 2 for every confidence."
    raw = torch.zeros(1, 15, 32, 32, requires_grad=True)
    target = [torch.tensor([[96.0, 96.0, 160.0, 160.0]])], [torch.tensor([3])], [torch.tensor([False])]
    ours, plain = detection_loss(raw, *target, 8), diagnosis.plain_detection_loss(raw, *target, 8)
    assert ours["det_cls"].item() == pytest.approx(math.log(10))
    assert plain["det_cls"].item() == pytest.approx(9 / 1024 * math.log(10))
    assert plain["conf"].item() == pytest.approx(math.log(2))
    both = diagnosis.gradient_norms({"ours": ours["det_cls"], "plain": plain["det_cls"]}, [raw])
    assert both["ours"] / both["plain"] == pytest.approx(1024 / 9, rel=1e-4)


def test_cases_change_what_they_say(base):
    minis = get_minis(base)
    learner, _ = diagnosis.make_probe("no_prior", base, minis)
    layer = learner.net.head.layers[-1]
    assert layer.conv.bias[4 * layer.fine**2:5 * layer.fine**2].eq(0).all() and layer.conv.bias[0] == 1
    learner, _ = diagnosis.make_probe("no_normalisation", base, minis)
    assert type(learner.tasks["det"]) is diagnosis.PlainDetectionTask
    cfg = diagnosis.case_config("no_pretrained", base)
    assert (cfg.net.backbone, cfg.net.weights) == ("mobilenet_v2", "none"), "another start, the same backbone"
    cfg = diagnosis.case_config("one_rate", base)
    assert (cfg.net.frozen_blocks, cfg.train.backbone_lr, cfg.train.later_lr) == (0, 1.0, 1.0)
    with pytest.raises(InputError, match="case magic: one of reference, no_normalisation"):
        diagnosis.case_config("magic", base)


@pytest.mark.parametrize("name, drifts", [("reference", False), ("norm_drift", True)])
def test_norm_statistics_drift_although_weights_are_frozen(name, drifts, base):
    cfg = replace_fields(base, epochs_seg=1, epochs_det=1)
    learner, _ = diagnosis.make_probe(name, cfg, get_minis(cfg))
    before = {k: v.clone() for k, v in learner.net.backbone.state_dict().items()}
    diagnosis.fit_stage(learner, 0, ("seg",), [])
    after = learner.net.backbone.state_dict()
    moved = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert moved == ({"running_mean", "running_var", "num_batches_tracked"} if drifts else set())
    assert not any(m.training for m in learner.net.eval().backbone.modules()), "evaluation reads the statistics"


def test_fields_of_a_case(ran, start):
    case = json.loads((ran / "reference.json").read_text())
    wanted = {"case", "matrix", "epochs", "gradients", "every", "weights", "size", "seed", "config", "device", "versions", "date",
              "floors", "cells", "positives", "parameters", "trainable", "shared", "stopped", "train_seconds", "cpu_seconds"}
    assert wanted <= set(case) and set(case["weights"]) == {"name", "sha256", "backbone"} and len(case["weights"]["sha256"]) == 64
    assert list(case["matrix"]) == ["seg", "det", "cls"] and set(case["matrix"]["cls"]) >= {"mIoU", "AP", "AP50", "Top1"}
    assert [len([r for r in case["gradients"] if r["stage"] == s]) for s in range(3)] == [2 * 2, 4 * 2, 2 * 2], "8 images by 4"
    assert set(case["gradients"][-1]["norms"]) >= {"cls", "kd_seg", "kd_det"} and set(case["gradients"][0]["norms"]) == {"seg"}
    assert [len([r for r in case["epochs"] if r["task"] == t]) for t in ("seg", "det", "cls")] == [2, 4, 2]
    assert case["cells"] == 64 and 0 < case["positives"] < 64 and case["weights"]["name"] == "start.pt"
    assert start[0].rpartition("/")[0] not in (ran / "reference.json").read_text()


def test_a_finished_case_is_not_run_again(ran, base, start, monkeypatch, capsys):
    before = (ran / "reference.json").read_bytes()
    monkeypatch.setattr(diagnosis, "case_record", lambda *_: pytest.fail("it was run again"))
    words = ["--data-root", start[0], "--weights", start[1], "--preset", "smoke", "--out", str(ran), "--device", "cpu"]
    assert diagnosis.main([*words, "--only", "reference", *TINY]) == 0
    assert "reference: finished before" in capsys.readouterr().out and (ran / "reference.json").read_bytes() == before
    assert diagnosis.main([*words, *TINY, "lr=0.1", "--only", "reference"]) == 2
    assert "lr: 0.002 in the file, 0.1 asked for" in capsys.readouterr().err
    other = replace(base, net=replace(base.net, weights="elsewhere/other.pt"))
    with pytest.raises(InputError, match="start.pt in the file, other.pt asked for"):
        diagnosis.run_case("reference", other, ran)


def test_strong_distillation_leaves_the_new_task_little(ran):
    cases = diagnosis.read_cases(ran)
    assert list(cases) == ["reference", "kd_too_strong"], "in the order of CASES, and only what is finished"
    for stage in (1, 2):
        strong, usual = (diagnosis.share_of(cases[n], stage) for n in ("kd_too_strong", "reference"))
        assert 0 < strong < usual, "by less than the weights' ratio: a student held at its teacher is hardly pulled"


def test_a_loss_that_is_not_finite_is_a_result(base, monkeypatch):
    learner, _ = diagnosis.make_probe("reference", replace_fields(base, epochs_seg=1), get_minis(base))
    monkeypatch.setattr(learner.tasks["det"], "parts", lambda *_: {"box": torch.tensor(math.nan, requires_grad=True)})
    done = diagnosis.run_sequence(learner, lambda *_: None)
    assert list(done["matrix"]) == ["seg"] and done["stopped"]["stage"] == 1 and "box=nan" in done["stopped"]["reason"]


def test_words_and_tables_from_hand_made_cases():
    def made(name, end, share):
        rows = [{"stage": s, "step": k, "norms": {t: share, "kd_seg": 1 - share}} for s, t in ((1, "det"), (2, "cls"))
                for k in (0, 10, 20)]
        first = [{"stage": 0, "step": k, "norms": {"seg": 2.0}} for k in (0, 10)]
        matrix = {"seg": {"mIoU": 0.5}, "det": {"mIoU": 0.4, "AP": 0.2, "AP50": 0.3},
                  "cls": {"mIoU": end, "AP": 0.1, "AP50": 0.2, "Top1": 0.9}}
        return {"case": name, "title": diagnosis.CASES[name].title, "matrix": matrix, "gradients": first + rows, "every": 10,
                "weights": {"name": "w.pt"}, "size": 64, "seed": 0, "device": "cpu", "train_seconds": {"total": 90.0},
                "epochs": [{"parts": {"seg_ce": 1.0}}], "stopped": None}

    usual, strong = made("reference", 0.4, 0.5), made("kd_too_strong", 0.1, 0.01)
    text = diagnosis.sentence(usual, strong)
    assert "mIoU 0.1000 in place of 0.4000 (-75 %)" in text and "stage 2: 1.0 % in place of 50.0 %" in text
    assert "| 2 detection | 0.010 (0.500) | 0.010 (0.500) | 0.010 (0.500) | AP 0.2000 (0.2000) | 0.1000 (0.1000) |" in (
        diagnosis.case_table(usual, strong))
    table = diagnosis.summary_table({"reference": usual, "kd_too_strong": strong})
    assert "| reference | 0.5000 -> 0.4000 | 0.2000 -> 0.1000 | 0.3000 -> 0.2000 | 0.9000 | w.pt | 64 px | 0 | cpu |" in table
    assert "mIoU is lowest with *distillation too strong*: 0.1000 in place of 0.4000" in (
        diagnosis.costliest({"reference": usual, "kd_too_strong": strong}))
    assert diagnosis.stage_starts(usual) == [0, 20, 50]
    diagnosis.plt.close(diagnosis.draw_case(usual, strong))
    stopped = {**strong, "stopped": {"stage": 1}, "matrix": {"seg": {"mIoU": 0.5}}}
    assert "not finite in stage 2" in diagnosis.sentence(usual, stopped)
    assert "| - (0.1000) |" in diagnosis.case_table(usual, stopped)
    diagnosis.plt.close(diagnosis.draw_summary({"reference": usual, "kd_too_strong": stopped}))


def test_committed_cases_differ_in_the_cause_alone():
    cases = diagnosis.read_cases()
    assert list(cases) == list(diagnosis.CASES)
    for name, case in cases.items():
        flat, other = ({k: v for part in c["config"].values() for k, v in part.items()} for c in (case, cases["reference"]))
        allowed = {*diagnosis.CASES[name].settings, "backbone", "weights", "threads"}
        assert {k for k in flat if flat[k] != other.get(k)} <= allowed, name
        assert case["device"] == cases["reference"]["device"], f"{name}: times are compared on one device"
