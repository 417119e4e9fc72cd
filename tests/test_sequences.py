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

from unified_onehead.data import augment  # noqa: E402
from unified_onehead.model.backbone import build_backbone  # noqa: E402
from unified_onehead.core.config import METRICS, TASKS, preset, replace_fields  # noqa: E402
from unified_onehead.data.records import Sample  # noqa: E402
from unified_onehead.model.net import OneHead  # noqa: E402
from unified_onehead.data.sources import read_minis  # noqa: E402
from unified_onehead.learn.strategies import owned_entries  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402


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
    for more, mentions in (
        (["--folds", "4"], "--folds 4: some of 0,1,2,3, joined by commas"),
        (["--trials", "magic"], "--trials magic: some of default,no distillation,"),
        (["--trials", "default,default"], "--trials default,default: names default more than once"),
        (["--trials", "no colour", "workers=2"], "workers=2: no colour needs workers=0"),
    ):
        assert sequences.main([*words, *more]) == 2 and mentions in capsys.readouterr().err
    assert len(ran) == 8


def test_a_trial_of_other_views_draws_them_and_shares_none(root, tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "SEARCH", tmp_path / "search.jsonl")
    square = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(0, dtype=torch.long)
    sample, seen = Sample(square, "det", torch.zeros(0, 4), none, none.bool()), []

    def run_trial(cfg, minis, say, store):
        plain = torch.Generator()
        images = torch.stack([augment.augment(sample, 32, (1.0, 1.0), plain.manual_seed(k)).image for k in range(8)])
        seen.append((images, len(store), (cfg.train.zoom_min, cfg.train.zoom_max)))
        store[len(store)] = "a view"
        return {"matrix": {}, "averaged": {}}

    monkeypatch.setattr(sequences, "run_trial", run_trial)
    names = "default,no colour,no mirror images,boxes twice,half the zoom,no zoom"
    words = ["--data-root", str(root), "--weights", "none", "--preset", "smoke", "--folds", "0", "--trials", names]
    assert sequences.main(words) == 0
    usual, grey, straight, twice, half, still = seen
    assert [kept for _, kept, _ in seen] == [0, 0, 0, 1, 0, 0], "the fourth goes on with the first one's"
    assert torch.equal(usual[0], twice[0]) and half[2] == (0.7, 1.4) and still[2] == (1.0, 1.0)
    both = [square, square.flip(-1)]  # all that a view is when it is neither scaled nor coloured
    assert all(any(torch.equal(i, whole) for whole in both) for i in grey[0]) and len(grey[0].unique(dim=0)) == 2

    def unmirrored(images):
        return [0 < a < b for a, b in ([(i.float() - whole).abs().mean() for whole in both] for i in images)]

    assert all(unmirrored(straight[0])), "coloured, and never mirrored"
    assert not all(unmirrored(usual[0]))


def test_only_the_first_views_and_the_last_stay_in_memory(cfg):
    stores, sizes = {}, (256, 192, 256, 320)
    found = [sequences.store_for(stores, "default", replace_fields(cfg, size=size)) for size in sizes]
    assert found[0] is found[2] and [key[0] for key in stores] == [256, 320]
