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

from unified_onehead.model.backbone import MobileNetV2  # noqa: E402
from unified_onehead.cli import run_config  # noqa: E402
from unified_onehead.core.files import InputError  # noqa: E402
from unified_onehead.core.config import replace_fields  # noqa: E402
from unified_onehead.learn.learner import parameter_groups  # noqa: E402
from unified_onehead.learn.losses import detection_loss  # noqa: E402
from unified_onehead.data.sources import get_minis  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402

TINY = ["size=64", "width=32", "cached_views=1", "batch_size=4", "epochs_seg=2", "epochs_det=4", "epochs_cls=2", "replay=4",
        "replay_batch=2", "isolate_channels=false", "threads=1", "eval_batch=6", "mask_score_weight=0", "mask_box_weight=0"]


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


def test_gradient_norms_of_a_device_without_doubles(monkeypatch):
    "As on MPS: the gradient has to be on the CPU before it becomes double."
    class OnDevice:
        def detach(self): return self

        def cpu(self): return torch.tensor([3.0, 4.0])

        def double(self): raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: (OnDevice(), None))
    assert diagnosis.gradient_norms({"seg": torch.ones(1, requires_grad=True)}, []) == {"seg": 5.0}


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


def test_what_the_package_ignores_is_a_negative_of_the_plain_loss():
    "A crowd box over everything: ours has no cell left to learn from, the plain loss has 1024 of log 2."
    raw = torch.zeros(1, 15, 32, 32, requires_grad=True)
    target = [torch.tensor([[0.0, 0.0, 256.0, 256.0]])], [torch.tensor([3])], [torch.tensor([True])]
    assert detection_loss(raw, *target, 8)["conf"].item() == 0
    assert diagnosis.plain_detection_loss(raw, *target, 8)["conf"].item() == pytest.approx(math.log(2))
    assert "crowd boxes" in diagnosis.CASES["no_normalisation"].says


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
    assert (cfg.net.frozen_blocks, cfg.train.backbone_lr, cfg.train.stage_lr_decay) == (0, 1.0, 1.0)
    assert replace_fields(diagnosis.case_config("frozen_one_rate", base), frozen_blocks=0) == cfg, "all but the freezing"
    loss = diagnosis.case_config("task_weights", base).loss
    assert (loss.loss_box, loss.loss_conf, loss.loss_det_cls) == pytest.approx((0.02, 0.01, 0.01))
    assert loss.loss_seg_ce == base.loss.loss_seg_ce
    with pytest.raises(InputError, match="case magic: one of reference, no_normalisation"):
        diagnosis.case_config("magic", base)


@pytest.mark.parametrize("name, backbone, shared", [
    ("reference", (), 0.5), ("unfrozen_slow", (0.05,), 0.5), ("frozen_one_rate", (), 1.0), ("one_rate", (1.0,), 1.0)])
def test_unfreezing_and_rates_come_apart(name, backbone, shared, base):
    "Rates of stage 2 over `lr`: by part a tenth for the backbone, half of both a stage later."
    learner, _ = diagnosis.make_probe(name, diagnosis.case_config(name, base), get_minis(base))
    names, found = {id(p): n for n, p in learner.net.named_parameters()}, {}
    for group in parameter_groups(learner.net, learner.cfg, 1):
        for p in group["params"]:
            part = names[id(p)]
            part = "backbone" if part.startswith("backbone") else "outputs" if part.startswith("head.layers.2.") else "shared"
            found.setdefault(part, set()).add(round(group["lr"] / learner.cfg.train.lr, 6))
    assert found == {"shared": {shared}, "outputs": {1.0}, **({"backbone": set(backbone)} if backbone else {})}
    assert not any(m.training for m in learner.net.train().backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["unfrozen_slow", "frozen_one_rate", "task_weights"])
def test_cases_run_to_their_end(name, base, tmp_path):
    short = replace_fields(base, epochs_seg=1, epochs_det=1, epochs_cls=1)
    diagnosis.run_case(name, short, tmp_path, every=1, say=lambda *_: None)
    (case,), = diagnosis.read_cases(tmp_path).values()
    assert case["case"] == name and list(case["matrix"]) == ["seg", "det", "cls"] and not case["stopped"]
    assert (case["trainable"] == case["parameters"]) == (name == "unfrozen_slow")


@pytest.mark.parametrize("name, drifts", [("reference", False), ("norm_drift", True)])
def test_norm_statistics_drift_although_weights_are_frozen(name, drifts, base):
    cfg = replace_fields(base, epochs_seg=1, epochs_det=1)
    learner, _ = diagnosis.make_probe(name, cfg, get_minis(cfg))
    before = {k: v.clone() for k, v in learner.net.backbone.state_dict().items()}
    learner.fit_stage(0, ("seg",), [])
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
    assert diagnosis.main([*words, *TINY, "lr=0.1", "--seeds", "1", "--only", "reference"]) == 2, "before seed 1 is trained"
    assert "a mean over seeds is one over seeds alone. Repeat its settings, add seed 0 to --seeds" in capsys.readouterr().err
    for text, reason in (("0,0", "names a seed twice"), (",", "names none"), ("0,x", "write whole numbers")):
        assert diagnosis.main([*words, *TINY, "--seeds", text, "--only", "reference"]) == 2
        assert f"--seeds {text}: {reason}" in capsys.readouterr().err
    assert diagnosis.main([*words, *TINY, "--seeds", "1", "--only", "reference", "run.seed=3"]) == 2
    assert "run.seed=...: this command sets it; write the seed into --seeds." in capsys.readouterr().err
    other = replace(base, net=replace(base.net, weights="elsewhere/other.pt"))
    with pytest.raises(InputError, match="start.pt in the file, other.pt asked for"):
        diagnosis.run_case("reference", other, ran)


def test_one_file_a_case_and_seed(ran, base, start, tmp_path, monkeypatch):
    "Seed 0 keeps the name alone; seeds are read together, and refused where they differ in more."
    asked = []
    monkeypatch.setattr(diagnosis, "case_record", lambda name, cfg, *_: asked.append(cfg) or {
        **json.loads((ran / f"{name}.json").read_text()), "seed": cfg.run.seed, "config": diagnosis.shown_config(cfg)})
    words = ["--data-root", start[0], "--weights", start[1], "--preset", "smoke", "--out", str(tmp_path), "--device", "cpu"]
    assert diagnosis.main([*words, *TINY, "--seeds", "0,2", "--only", "reference"]) == 0
    assert [cfg.run.seed for cfg in asked] == [0, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference-seed2.json", "reference.json"]
    assert [c["seed"] for c in diagnosis.read_cases(tmp_path)["reference"]] == [0, 2]
    case = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference-seed1.json").write_text(json.dumps(case))
    with pytest.raises(InputError, match="reference-seed1.json: another file of the folder has seed 0"):
        diagnosis.read_cases(tmp_path)
    case["seed"], case["config"]["train"]["lr"] = 1, 0.5
    (tmp_path / "reference-seed1.json").write_text(json.dumps(case))
    with pytest.raises(InputError, match="reference-seed1.json: differs from the other seeds .*lr: 0.5 and 0.002"):
        diagnosis.read_cases(tmp_path)


def test_strong_distillation_leaves_the_new_task_little(ran):
    cases = diagnosis.read_cases(ran)
    assert list(cases) == ["reference", "kd_too_strong"], "in the order of CASES, and only what is finished"
    for stage in (1, 2):
        strong, usual = (diagnosis.share_of(cases[n][0], stage) for n in ("kd_too_strong", "reference"))
        assert 0 < strong < usual, "by less than the weights' ratio: a student held at its teacher is hardly pulled"


def test_a_loss_that_is_not_finite_is_a_result(ran, base, tmp_path, monkeypatch):
    "Its gradient is not finite either; the file says null, and whatever reads it goes on without."
    monkeypatch.setattr(diagnosis.DetectionTask, "parts", lambda self, output, *_: {"box": math.nan * output.detection.sum()})
    path = diagnosis.run_case("reference", replace_fields(base, epochs_seg=1), tmp_path, every=1, say=lambda *_: None)
    case = json.loads(path.read_text())
    assert list(case["matrix"]) == ["seg"] and case["stopped"]["stage"] == 1 and "box=nan" in case["stopped"]["reason"]
    assert case["gradients"][-1]["norms"]["det"] is None and case["gradients"][-1]["norms"]["kd_seg"] is not None
    assert [row["task"] for row in case["epochs"]] == ["seg"] and set(case["train_seconds"]) == {"seg", "total"}
    assert diagnosis.norms_of(case, 1) == [] and diagnosis.share_of(case, 1) is None and diagnosis.reach_of(case, 1) is None
    usual, stopped = diagnosis.read_cases(ran)["reference"], diagnosis.read_cases(tmp_path)["reference"]
    assert "not finite in stage 2 with 1 of 1 seeds" in diagnosis.sentence(usual, stopped)
    assert "| 2 detection | reference | 1 (0) | - | - | - | AP - | - |" in diagnosis.case_table(usual, stopped)
    assert "1 of 2 seeds stopped" in diagnosis.summary_table({"reference": [*usual, *stopped]})
    assert " -, - |" in diagnosis.gradient_table({"reference": stopped})
    for figure in (diagnosis.draw_case(usual, stopped), diagnosis.draw_summary({"reference": stopped})):
        diagnosis.plt.close(figure)


def test_an_epoch_before_the_loss_left_the_finite_is_kept(base, tmp_path, monkeypatch):
    "Stage 2 shows 8 images by 4: its fourth step, of index 3, ends the second epoch, which is lost; the first counts."
    whole, steps = diagnosis.DetectionTask.parts, []

    def parts(self, *where):
        steps.append(1)
        return {name: value * (math.nan if len(steps) > 3 else 1) for name, value in whole(self, *where).items()}

    monkeypatch.setattr(diagnosis.DetectionTask, "parts", parts)
    path = diagnosis.run_case("reference", replace_fields(base, epochs_seg=1), tmp_path, every=1, say=lambda *_: None)
    case = json.loads(path.read_text())
    assert [(row["task"], row["epoch"]) for row in case["epochs"]] == [("seg", 1), ("det", 1)]
    assert (case["stopped"]["stage"], case["stopped"]["step"]) == (1, 3) and list(case["matrix"]) == ["seg"]
    assert case["train_seconds"]["total"] == pytest.approx(sum(row["seconds"] for row in case["epochs"]), rel=1e-4)


def test_floats_that_json_cannot_say_become_none():
    wanted = {"a": [None, None, 0.333333], "b": 2, "c": "nan"}
    assert diagnosis.tidy({"a": [math.nan, -math.inf, 1 / 3], "b": 2, "c": "nan"}) == wanted


def made(name, end, share, seed=0):
    "A case by hand: the new task pulls with `share`, distillation with the rest; mIoU ends at `end`."
    rows = [{"stage": s, "step": k, "norms": {t: share, "kd_seg": 1 - share}} for s, t in ((1, "det"), (2, "cls"))
            for k in (0, 10, 20)]
    first = [{"stage": 0, "step": k, "norms": {"seg": v}} for k, v in ((0, 2.0), (10, 1.0), (20, 3.0))]
    matrix = {"seg": {"mIoU": 0.5}, "det": {"mIoU": 0.4, "AP": 0.2, "AP50": 0.3},
              "cls": {"mIoU": end, "AP": 0.1, "AP50": 0.2, "Top1": 0.9}}
    return {"case": name, "matrix": matrix, "gradients": first + rows, "every": 10, "weights": {"name": "w.pt"}, "size": 64,
            "seed": seed, "device": "cpu", "train_seconds": {"total": 90.0}, "epochs": [{"parts": {"seg_ce": 1.0}}],
            "stopped": None}


def test_words_and_tables_from_hand_made_cases():
    usual, strong = [made("reference", 0.4, 0.5)], [made("kd_too_strong", 0.1, 0.01)]
    text = diagnosis.sentence(usual, strong)
    assert "mIoU 0.1000 in place of 0.4000 (-75 %)" in text and "stage 2: 1.0 % in place of 50.0 %. One seed." in text
    table = diagnosis.case_table(usual, strong)
    assert "| 2 detection | distillation too strong | 1 (0) | 0.010 | 0.010 | 0.010 | AP 0.2000 | 0.1000 |" in table
    assert "| 2 detection | reference | 1 (0) | 0.500 | 0.500 | 0.500 | AP 0.2000 | 0.1000 |" in table
    table = diagnosis.summary_table({"reference": usual, "kd_too_strong": strong})
    assert "| reference | 0.5000 -> 0.4000 | 0.2000 -> 0.1000 | 0.3000 -> 0.2000 | 0.9000 | 1 (0) | w.pt | 64 px | cpu |" in table
    assert "mIoU is lowest with *distillation too strong*: 0.1000 in place of 0.4000" in (
        diagnosis.costliest({"reference": usual, "kd_too_strong": strong}))
    assert diagnosis.stage_starts(usual[0]) == [0, 30, 60]
    diagnosis.plt.close(diagnosis.draw_case(usual, strong))
    stopped = [{**strong[0], "stopped": {"stage": 1}, "matrix": {"seg": {"mIoU": 0.5}}}]
    assert "not finite in stage 2 with 1 of 1 seeds" in diagnosis.sentence(usual, stopped)
    assert "| AP - | - |" in diagnosis.case_table(usual, stopped)
    diagnosis.plt.close(diagnosis.draw_summary({"reference": usual, "kd_too_strong": stopped}))


def test_seeds_are_means_with_their_spread():
    "mIoU .3 and .5: mean .4, deviation sqrt(2 x .01) = .1414. A seed that stopped has no figure and is counted."
    pair = [made("reference", 0.3, 0.5), made("reference", 0.5, 0.5, seed=1)]
    assert diagnosis.end_of(pair, "mIoU") == pytest.approx(0.4)
    table = diagnosis.summary_table({"reference": pair})
    assert "| 0.5000 ± 0.0000 -> 0.4000 ± 0.1414 |" in table and "| 2 (0, 1) |" in table and "| 1.5 ± 0.0 |" in table
    strong = [made("kd_too_strong", 0.1, 0.01), made("kd_too_strong", 0.3, 0.01, seed=1)]
    text = diagnosis.sentence(pair, strong)
    assert "mIoU 0.2000 in place of 0.4000 (-50 %)" in text and "Means of 2 seeds." in text
    assert "0.2000 ± 0.1414 |" in diagnosis.case_table(pair, strong)
    stopped = [strong[0], {**strong[1], "stopped": {"stage": 1}, "matrix": {"seg": {"mIoU": 0.5}}}]
    text = diagnosis.sentence(pair, stopped)
    assert "mIoU 0.1000 in place of 0.4000" in text and "not finite in stage 2 with 1 of 2 seeds" in text
    assert "0.1000 (1 of 2) |" in diagnosis.case_table(pair, stopped)
    for figure in (diagnosis.draw_case(pair, strong), diagnosis.draw_summary({"reference": pair, "kd_too_strong": strong})):
        diagnosis.plt.close(figure)


def test_how_far_gradients_move_by_hand():
    "Segmentation's 2, 1, 3: from a half to one and a half of the first step. Of 2, 3 and .99 the largest is the 3."
    pair = [made("kd_too_strong", 0.3, 0.01), made("kd_too_strong", 0.5, 0.01, seed=1)]
    assert diagnosis.reach_of(pair[0], 0) == (0.5, 1.5) and diagnosis.reach_of(pair[0], 1) == (1.0, 1.0)
    assert diagnosis.largest_pull(pair) == (3.0, "segmentation, labels", 1)
    pair[1]["gradients"][0]["norms"]["seg"] = 10.0  # this seed goes from a tenth
    table = diagnosis.gradient_table({"kd_too_strong": pair})
    assert "| 6.000 ± 5.657, 0.10 to 1.50 | 0.010 ± 0.000, 1.00 to 1.00 |" in table
    assert "| 10.0 (segmentation, labels, stage 1) | 2 (0, 1) |" in table


def test_a_norm_that_is_none_is_left_out():
    "Of three steps one has a whole set of norms after the first: a share of 1 in 4."
    steps = (0, {"det": None, "kd_seg": 0.0}), (10, {"det": 1.0, "kd_seg": None}), (20, {"det": 1.0, "kd_seg": 3.0})
    case = {"gradients": [{"stage": 1, "step": k, "norms": norms} for k, norms in steps]}
    assert diagnosis.share_of(case, 1) == 0.25 and diagnosis.norms_of(case, 1) == [1.0, 1.0]
    assert diagnosis.first_norm(case, 1) is None and diagnosis.reach_of(case, 1) is None
    assert diagnosis.largest_pull([case]) == (3.0, "segmentation, distillation", 2)
    assert diagnosis.norm_range([case]) == (1 / 1.5, 4.5)


def test_the_table_of_backbone_and_rates_says_what_is_not_run():
    table = diagnosis.rates_table({"reference": [made("reference", 0.4, 0.5)]})
    assert "| frozen | by part and stage | reference | 0.5000 | 0.2000 | 0.9000 | 1 (0) |" in table
    assert "| trains | by part and stage | unfrozen_slow | - | - | - | not run yet |" in table and len(table.splitlines()) == 6


def test_committed_cases_differ_in_the_cause_alone():
    cases = diagnosis.read_cases()
    assert set(cases) == set(diagnosis.CASES)
    assert len([*diagnosis.OUT.glob("*.json")]) == sum(map(len, cases.values())), "every file is read"
    usual = cases["reference"][0]
    for name, seeds in cases.items():
        for case in seeds:
            flat, other = ({k: v for part in c["config"].values() for k, v in part.items()} for c in (case, usual))
            allowed = {*diagnosis.CASES[name].settings, "backbone", "weights", "threads", "seed"}
            assert {k for k in flat if flat[k] != other.get(k)} <= allowed, name
            assert flat["seed"] == case["seed"] and all(flat[k] == v for k, v in diagnosis.CASES[name].settings.items()), name
            assert case["device"] == usual["device"], f"{name}: times are compared on one device"
