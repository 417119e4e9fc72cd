"""benchmarks/sequences.py: what is held out, what is averaged, what is not run again. One sequence of one epoch a stage is
trained."""
import json
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import sequences  # noqa: E402
from search import FOLDS  # noqa: E402

from unified_onehead.backbone import build_backbone  # noqa: E402
from unified_onehead.config import METRICS, TASKS, preset, replace_fields  # noqa: E402
from unified_onehead.net import OneHead  # noqa: E402
from unified_onehead.sources import read_minis  # noqa: E402
from unified_onehead.strategies import owned_entries  # noqa: E402
from unified_onehead.synthetic import make_synthetic  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("data") / "minis", 0, 12, 6, 32)


@pytest.fixture(scope="module")
def cfg(root):
    return replace_fields(preset("smoke"), root=str(root), width=24, device="cpu", threads=1)


def test_every_quarter_of_the_training_images_is_held_out_once(root, cfg):
    minis = read_minis(str(root))
    for task in TASKS:
        train, held = {r.path for r in minis.records[task]["train"]}, []
        for fold in range(FOLDS):
            kept, out = ([r.path for r in sequences.split(minis, fold, cfg).records[task][s]] for s in ("train", "val"))
            assert not {*kept} & {*out} and {*kept, *out} == train
            held += out
        assert sorted(held) == sorted(train)


def test_average_by_hand():
    "Weights of 1, 2 and 4 after the stages: half way for what is an earlier task's, the last for everything else."
    net = OneHead(build_backbone()[0], {"seg": 3, "det": 2, "cls": 2}, 24)
    stages = [{n: torch.full_like(p, value) for n, p in net.named_parameters()} for value in (1.0, 2.0, 4.0)]
    owned = {task: owned_entries(net, task) for task in TASKS}
    for share, expected in ((0.5, {"seg": 2.5, "det": 3.0}), (0.25, {"seg": 3.25, "det": 3.5})):
        with torch.no_grad():
            for n, p in net.named_parameters():
                p.copy_(stages[-1][n])
        sequences.average(net, stages, share)
        for n, p in net.named_parameters():
            wanted = torch.full_like(p, 4.0)
            for task, value in expected.items():
                wanted[owned[task][n]] = value
            assert torch.equal(p, wanted), n


def test_a_trial_reads_the_three_stages(root, cfg, monkeypatch):
    "Without any averaging the scores are those of the last stage."
    given = []
    monkeypatch.setattr(sequences, "average", lambda net, stages: given.append((dict(net.state_dict()), stages)))
    row = sequences.run_trial(cfg, sequences.split(read_minis(str(root)), 1, cfg), lambda text: None, {})
    assert row["averaged"] == {k: row["matrix"]["cls"][k] for k in (*METRICS.values(), "AP50")}
    (net, stages), = given
    assert all(torch.equal(v, stages[2][k]) for k, v in net.items()) and len(stages) == 3
    assert any(not torch.equal(stages[0][k], stages[1][k]) for k in net), "the first stage is not the second"


def test_what_is_there_is_not_run_again(root, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(sequences, "SEARCH", tmp_path / "search.jsonl")

    def run_trial(cfg, minis, say, store):
        ran.append((cfg.distill.kd, cfg.distill.strategy, sorted(r.path for r in minis.records["seg"]["val"])))
        return {"matrix": {}, "averaged": {}}

    monkeypatch.setattr(sequences, "run_trial", run_trial)
    words = ["--data-root", str(root), "--weights", "none", "--preset", "smoke", "--trials", "default,no distillation"]
    assert sequences.main(words) == 0 and [kd for kd, *_ in ran] == [ran[0][0], 0.0] * 2 and ran[0][0] > 0
    assert {strategy for _, strategy, _ in ran} == {"progressive_kd"}
    assert ran[0][2] == ran[1][2] != ran[2][2] == ran[3][2], "fold 0 twice, then fold 1 twice"
    assert sequences.main(words) == 0 and len(ran) == 4 and capsys.readouterr().out.count("done before") == 4
    assert sequences.main([*words, "lr=0.1"]) == 0 and len(ran) == 8, "other settings are another trial"
    lines = [json.loads(line) for line in sequences.SEARCH.read_text().splitlines()]
    assert [(r["name"], r["fold"]) for r in lines] == [(n, f) for f in (0, 1) for n in ("default", "no distillation")] * 2
    assert sequences.main([*words, "--folds", "4"]) == 2 and sequences.main([*words, "--trials", "magic"]) == 2 and len(ran) == 8
