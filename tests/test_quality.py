"""benchmarks/quality.py, specialists.py and collect.py: the plan, what runs again and what is refused, by toy runners; the
specialists' networks from random weights; what of a run is kept. Nothing is trained but one step of each specialist."""
import copy
import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torchvision
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import collect  # noqa: E402
import quality  # noqa: E402
from test_compare import honest_runner  # noqa: E402

from unified_onehead.model.backbone import BACKBONES, build_backbone, freeze  # noqa: E402
from unified_onehead.compare.experiment import SYSTEMS, Cell  # noqa: E402
from unified_onehead.compare.cells import read_cell, run_cell  # noqa: E402
from unified_onehead.core.config import TASKS, preset, replace_fields  # noqa: E402
from unified_onehead.core.files import InputError  # noqa: E402
from unified_onehead.data.augment import ViewDataset  # noqa: E402
from unified_onehead.data.cache import MiniDataset  # noqa: E402
from unified_onehead.data.records import collate, letterbox  # noqa: E402
from unified_onehead.data.sources import read_minis  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402

MOBILE, EFFICIENT = "mobilenet_v2-imagenet-features-64px", "efficientnet-b0-distilled-64px"
NAME = f"naive-{MOBILE}-seed0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("data") / "minis", 0, 12, 6, 32)


@pytest.fixture
def command(root, tmp_path, monkeypatch):
    "Runs the command with toy runners: (words) -> exit code; `.out` is the folder of cells, `.calls` what has run."
    def run(*words):
        options = ["--data-root", str(root), "--weights-dir", "w", "--preset", "smoke", "--out", str(run.out)]
        return quality.main([*(w for w in words if "=" not in w), *options, *(w for w in words if "=" in w)])

    run.out, run.calls = tmp_path / "cells", []
    monkeypatch.setattr(quality, "RUNNERS", {system: honest_runner(run.calls) for system in SYSTEMS})
    return run


def test_the_plan_lists_what_is_missing_in_order(command, capsys):
    "Two seeds: 5 systems x 2 starts x 2 seeds, then 5 x 2 x 5 folds of the first seed, then 8 others x 2 x 2."
    assert command("--plan", "--seeds", "4,2") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    ours = ["progressive_kd", "single", "specialist_seg", "specialist_det", "specialist_cls"]
    assert lines[:5] == [f"{system}-{MOBILE}-seed4" for system in ours]
    assert lines[5:10] == [f"{system}-{EFFICIENT}-seed4" for system in ours]
    assert lines[10:20] == [line.replace("seed4", "seed2") for line in lines[:10]]
    assert lines[20:70] == [f"{line}-fold{k}" for k in range(5) for line in lines[:10]]
    others = ["naive", "frozen", "ewc", "lwf", "replay", "isolation", "joint", "listed_remedies"]
    assert lines[70:86] == [f"{system}-{start}-seed4" for start in (MOBILE, EFFICIENT) for system in others]
    assert lines[86:] == [line.replace("seed4", "seed2") for line in lines[70:86]]
    assert "0 of 102 cells are finished" in said.err and command.calls == [] and not command.out.exists()


def test_a_finished_cell_is_not_run_again(command, capsys):
    assert command(NAME) == 0 and len(command.calls) == 1
    before = (command.out / f"{NAME}.json").read_bytes()
    assert command(NAME) == 0 and len(command.calls) == 1
    assert f"{NAME}: finished before" in capsys.readouterr().out and (command.out / f"{NAME}.json").read_bytes() == before
    assert command("--plan") == 0
    said = capsys.readouterr()
    assert NAME not in said.out.splitlines() and f"naive-{MOBILE}-seed1" in said.out.splitlines()
    assert "1 of 128 cells are finished" in said.err, "three seeds: 30 of ours, 50 folds of the first seed, 48 others"
    assert command(f"naive-{MOBILE}-*") == 0 and len(command.calls) == 3, "the two other seeds"


def test_a_stale_cell_is_refused_and_made_again_with_redo(command, capsys):
    assert command(NAME) == 0
    before = (command.out / f"{NAME}.json").read_bytes()
    assert command(f"*-{MOBILE}-seed0", "lr=0.5") == 2, "asked before the many others that the pattern names train"
    said = capsys.readouterr().err
    assert f"{NAME}.json: stale (lr: " in said and "in the file, 0.5 asked for)" in said and "--redo makes it again" in said
    assert len(command.calls) == 1 and (command.out / f"{NAME}.json").read_bytes() == before
    assert command("--plan", "lr=0.5") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{NAME}: stale (lr: ")]
    assert command(NAME, "--redo", "lr=0.5") == 0 and len(command.calls) == 2
    assert read_cell(command.out / f"{NAME}.json")["config"]["train"]["lr"] == 0.5
    assert command(NAME, "lr=0.5") == 0 and len(command.calls) == 2


def test_redo_makes_a_finished_cell_again(command):
    assert command(NAME) == 0 and command(NAME, "--redo") == 0 and len(command.calls) == 2


def test_verify_trains_beside_the_cell_and_holds_every_score_against_it(command, capsys, monkeypatch):
    record = command.out.parent / "verified" / f"{NAME}.json"
    assert command(NAME) == 0
    before = (command.out / f"{NAME}.json").read_bytes()
    assert command(NAME, "--verify") == 0 and len(command.calls) == 2
    assert f"{NAME}: the same, largest difference of a score 0.0e+00" in capsys.readouterr().out
    found = json.loads(record.read_text())
    assert found["same"] and found["scores"] == {"Top1": [1.0, 1.0]} and found["code"][0] == found["code"][1]

    def one_wrong(cfg, minis, say=print):
        made = honest_runner([])(cfg, minis)
        made["evidence"]["cls"]["seen"][0] = [0, 1]
        return made

    monkeypatch.setitem(quality.RUNNERS, "naive", one_wrong)
    assert command(NAME, "--verify") == 1
    images = len(read_cell(command.out / f"{NAME}.json")["evidence"]["cls"]["seen"])
    assert f"{NAME}: NOT the same, largest difference of a score {1 / images:.1e}" in capsys.readouterr().out
    assert not json.loads(record.read_text())["same"] and (command.out / f"{NAME}.json").read_bytes() == before


@pytest.mark.parametrize("words, mentions", [
    ([NAME, "nothing-*"], "nothing-*: names no cell of the plan. --plan lists what is missing."),
    ([NAME, "--seeds", "1"], f"{NAME}: names no cell of the plan."),
    ([NAME, "--seeds", ""], "--seeds: names none. Write numbers joined by commas, for example 0,1,2."),
    ([NAME, "--seeds", "one"], "--seeds one: write whole numbers joined by commas"),
    ([], "no cell: name some, or write --plan or --all."),
    ([NAME, "--verify"], f"{NAME}.json: is not there yet. Without --verify it is made."),
    ([NAME, "--verify", "--redo"], "--verify: keeps the old cells and takes names"),
    (["--all", "--redo"], "--redo: takes names"),
    ([NAME, "seed=0"], "seed=...: this command sets it; write --seeds N,M."),
    (["--plan", "distill.strategy=ewc"], "distill.strategy=...: this command sets it; write the names of cells"),
    ([NAME, "single_task=true"], "single_task=...: this command sets it; write the names of cells, for example 'single-*'."),
    ([NAME, "weights=none"], "weights=...: this command sets it; write --weights-dir W."),
])
def test_refused_before_anything_runs(command, capsys, words, mentions):
    assert command(*words) == 2
    assert mentions in capsys.readouterr().err and command.calls == [] and not command.out.exists()


@pytest.fixture(scope="module")
def specialists():
    "The module, where the extra `bench` is installed."
    pytest.importorskip("segmentation_models_pytorch")
    import specialists
    return specialists


def frozen_backbone(name):
    "Random weights; the stem and eight blocks frozen."
    torch.manual_seed(0)
    return freeze(build_backbone(name)[0], 8)


@pytest.mark.parametrize("words, mentions", [
    (["--tasks", "seg,all"], "--tasks seg,all: some of seg,det,cls, joined by commas"),
    (["--folds", "0,4"], "--folds 0,4: some of 0,1,2,3, joined by commas"),
    (["--tasks", "cls,cls"], "--tasks cls,cls: names cls more than once"),
])
def test_a_specialists_search_refuses_before_it_trains(specialists, root, capsys, monkeypatch, words, mentions):
    monkeypatch.setattr(specialists, "run_specialist", lambda *_: pytest.fail("it was trained"))
    assert specialists.main(["--data-root", str(root), "--weights", "none", "--preset", "smoke", *words]) == 2
    assert mentions in capsys.readouterr().err


def test_a_specialist_of_another_recipe_is_stale(specialists, command, root, monkeypatch):
    cell = Cell("specialist_cls", replace_fields(preset("smoke"), root=str(root)))
    recipe = dict(specialists.RECIPES["cls"])

    def runner(cfg, minis, say=print, show=None):
        return {**honest_runner([])(cfg, minis), "recipe": recipe}

    run_cell(cell, command.out, lambda *_: None, {cell.system: runner})
    assert quality.state(cell, command.out, lambda fold: read_minis(str(root))) == "finished"
    monkeypatch.setitem(specialists.RECIPES, "cls", {**recipe, "lr": 0.5})
    word = quality.state(cell, command.out, lambda fold: read_minis(str(root)))
    assert word == f"stale (lr: {recipe['lr']} in the file's recipe, 0.5 now)"


@pytest.mark.parametrize("name", BACKBONES)
def test_the_encoder_gives_maps_at_the_strides_it_names(specialists, name):
    images = torch.rand(2, 3, 64, 64)
    encoder = specialists.Encoder(frozen_backbone(name)).eval()
    maps = encoder(images)
    assert [64 // m.shape[-1] for m in maps] == [1, 2, 4, 8, 16, 32] and [m.shape[1] for m in maps] == encoder.out_channels
    for decoder, stride in (("DeepLabV3Plus", 16), ("FPN", 32)):
        net = specialists.make_segmenter(frozen_backbone(name), 7, {"decoder": decoder}).eval()
        with torch.no_grad():
            assert 64 // net.encoder(images)[-1].shape[-1] == stride == net.encoder.output_stride
            assert net(images).shape == (2, 7, 32, 32), "logits at stride 2"


@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_of_detector_and_classifier(specialists, name):
    images = torch.rand(2, 3, 64, 64)
    recipe = specialists.RECIPES["det"]
    detector = specialists.make_specialist("det", frozen_backbone(name), 5, 64, recipe).eval()
    with torch.no_grad():
        levels, found = detector.fcos.backbone(images), detector(images)
        logits = specialists.make_specialist("cls", frozen_backbone(name), 4, 64, specialists.RECIPES["cls"]).eval()(images)
    assert [tuple(m.shape[1:]) for m in levels.values()] == [(recipe["width"], n, n) for n in (8, 4, 2, 1, 1)], "P3 to P7"
    assert len(found) == 2 and all(0 < len(f["boxes"]) <= 100 and f["labels"].max() < 5 for f in found)
    assert all(f["boxes"].min() >= 0 and f["boxes"].max() <= 64 for f in found)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_moves_all_but_the_frozen_blocks(specialists, root, task, name):
    minis, recipe = read_minis(str(root)), specialists.RECIPES[task]
    data = MiniDataset(minis.records[task]["train"], 64)
    batch = collate([letterbox(data.sample(i), 64) for i in range(2)])
    backbone = frozen_backbone(name)
    net = specialists.make_specialist(task, backbone, len(minis.classes[task]), 64, recipe).train()
    before = copy.deepcopy(net.state_dict())
    steps = [copy.deepcopy([m.state_dict() for m in backbone.step_modules(i)]) for i in range(backbone.steps)]

    groups = specialists.parameter_groups(net, recipe)
    learning = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    frozen = {p for i in range(9) for m in backbone.step_modules(i) for p in m.parameters()}
    for key, p in net.named_parameters():
        rate = recipe["lr"] * (recipe["backbone_lr"] if "backbone.body" in key else 1)
        decay = recipe["weight_decay"] if p.ndim > 1 else 0
        assert learning.get(p) == (None if p in frozen else (rate, decay)), key

    loss = specialists.specialist_loss(task, net, batch)
    assert loss.isfinite()
    loss.backward()
    torch.optim.AdamW(groups).step()
    moved = [any(not torch.equal(v, old[k]) for m, old in zip(backbone.step_modules(i), olds) for k, v in m.state_dict().items())
             for i, olds in enumerate(steps)]
    last = task != "seg"  # the 1x1 convolution is no part of the segmenter
    assert moved == [False] * 9 + [True] * (backbone.steps - 10) + [last], "stem and eight blocks stay, statistics and all"
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in changed if "backbone.body" in k and "running" in k], "the backbone's norms keep their statistics"
    assert [k for k in changed if "backbone.body" not in k], "what is not backbone learns"


@pytest.fixture(scope="module")
def bridge(specialists):
    "The module, where the extra `bench` is installed."
    import bridge
    return bridge


def test_every_step_of_the_bridge_changes_one_thing(bridge):
    cfg, names = preset("cpu"), list(bridge.STEPS)
    recipes = [bridge.recipe_of(name, cfg) for name in names]
    changed = [{k for k in a | b if a.get(k) != b.get(k)} for a, b in zip(recipes, recipes[1:])]
    assert changed == [{"frozen_blocks"}, {"kept"}, {"separable"}, {"layers"}, {"levels"}, {"middle"}, {"assigner"},
                       {"losses", "middle"},  # with ours, locations are in the middle anyway
                       {"lr", "weight_decay"}, set(),  # our network, and none of the specialist's recipe is left
                       {"levels", "our_width"}, {"levels", "our_width"}, {"levels", "kept"}], "each trial by itself"
    assert recipes[0].items() >= bridge.RECIPES["det"].items() and recipes[-1]["lr"] == cfg.train.lr


@pytest.fixture
def step_of_bridge(bridge, root):
    "Network, views and configuration of a step, on a backbone that is frozen whole."
    cfg, minis = replace_fields(preset("smoke"), cached_views=2), read_minis(str(root))
    views = ViewDataset({"det": MiniDataset(minis.records["det"]["train"], 128)}, 64, (0.5, 2.0), 0)

    def make(step):
        backbone, recipe = build_backbone("mobilenet_v2")[0], bridge.recipe_of(step, preset("cpu"))
        torch.manual_seed(0)
        return bridge.make_step("det", freeze(backbone, -1), len(minis.classes["det"]), 64, recipe), recipe
    return make, views, cfg


def test_the_bridges_networks(bridge, step_of_bridge):
    make, views, cfg = step_of_bridge
    batch, sizes = collate([views["det", i, 0] for i in range(4)]).to("cpu"), []
    for step in [name for name, (_, change) in bridge.STEPS.items() if change is not None and name != "views"][1:]:
        net, recipe = make(step)
        sizes.append(sum(p.numel() for p in net.parameters() if p.requires_grad))
        ours = bridge.levels_loss if step in ("levels", "towers") else bridge.our_loss
        loss_of = partial(ours, cfg=cfg) if recipe["losses"] == "ours" else bridge.specialist_loss
        loss = loss_of("det", net.train(), batch)
        loss.backward()
        assert loss.isfinite() and all((p.grad is not None) == p.requires_grad for p in net.parameters()), step
        with torch.no_grad():
            found = net.eval()(batch.images)
        if step == "levels":
            assert [tuple(level.shape) for level in found] == [(4, 5 + 8, side, side) for side in (8, 4, 2)]
            assert sizes.pop() == sum(p.numel() for part in (net.necks, net.head) for p in part.parameters())
        elif step == "towers":
            assert [tuple(level.shape) for level in found] == [(4, 5 + 8, side, side) for side in (8, 4, 2, 1, 1)]
            assert sizes.pop() == sizes[3], "the network of two layers on five levels"
        elif recipe["losses"] == "ours":
            assert found.detection.shape == (4, 5 + 8, 8, 8) and found.detection[:, 4].sigmoid().max() < .1, "hardly sure"
        else:
            assert len(found) == 4 and [f["boxes"].shape[1] for f in found] == [4] * 4
    frozen, kept, thin, two, level, *rest = sizes
    dense, slim = 9 * 128 * 128 + 128, 9 * 128 + 128 * 128
    assert frozen == kept and frozen - thin == 8 * (dense - slim), "eight convolutions of two towers"
    assert thin - two == 4 * (slim + 256) and len(set(rest)) == 1, "four layers with their norms; then only what is asked of them"


def test_our_levels_share_the_boxes_and_are_read_together(bridge):
    "A side of 64 pixels is the second level's; regions to ignore are everyone's; an object found on two levels is one box."
    cfg, boxes = preset("cpu"), torch.tensor([[0, 0, 63, 9], [0, 0, 9, 64], [8, 8, 135, 40], [0, 0, 128, 1], [0, 0, 200, 200.]])
    batch = SimpleNamespace(boxes=[boxes], labels=[torch.arange(5)], crowd=[torch.arange(5) == 4])
    assert [bridge.own_boxes(batch, k, 3)[1][0].tolist() for k in range(3)] == [[0, 4], [1, 2, 4], [3, 4]]
    assert bridge.own_boxes(batch, 2, 5)[1][0].tolist() == [3, 4], "of five, the third ends at 256 pixels"
    assert bridge.own_boxes(batch, 1, 3)[2][0].tolist() == [False, False, True]
    maps = [torch.zeros(1, 7, 32 >> k, 32 >> k) for k in range(3)]  # 256 pixels, two classes
    for k, level in enumerate(maps):
        level[:, 4] = -9
        if k < 2:  # the location nearest to (100, 100) says a square of 80 pixels around itself
            at = 100 // (8 << k)
            level[0, :4, at, at], level[0, 4, at, at], level[0, 5, at, at] = math.log(40 / (8 << k)), 3 - k, 9
    sample = SimpleNamespace(original=(256, 256), extent=(256, 256))
    found = bridge.LevelsReader(["nut", "bolt"], cfg).predict(maps, 0, sample, 256)
    assert found.labels.tolist() == [0] and found.boxes[0].tolist() == pytest.approx([60, 60, 140, 140])
    one = [(level, [boxes[at]], [torch.arange(2)[at]]) for level, at in zip(maps, (slice(0, 1), slice(1, 2), slice(0, 0)))]
    batch = SimpleNamespace(images=None, boxes=[boxes[:2]], labels=[torch.arange(2)], crowd=[torch.zeros(2).bool()])
    counts, terms = [], []
    for k, (level, b, t) in enumerate(one):
        points = bridge.split_detection(level, 8 << k)[0]
        counts.append(int((bridge.assign(points, b[0], torch.zeros(len(b[0])).bool(), 8 << k).index >= 0).sum()))
        parts = bridge.detection_loss(level, b, t, [torch.zeros(len(b[0])).bool()], 8 << k)
        terms.append(sum(cfg.loss.__dict__[f"loss_{name}"] * float(value) for name, value in parts.items()))
    assert counts[0] and counts[1] and not counts[2]
    expected = (counts[0] * terms[0] + counts[1] * terms[1] + terms[2]) / (counts[0] + counts[1])
    assert float(bridge.levels_loss("det", lambda images: maps, batch, cfg)) == pytest.approx(expected)


def test_kept_views_are_those_that_the_backbone_would_compute(bridge, step_of_bridge):
    (make, views, _), calls = step_of_bridge, []
    net, _ = make("kept")
    feed = bridge.KeptViews(views, net)
    net.pyramid.backbone.register_forward_hook(lambda *_: calls.append(1))
    steps = [[("det", 0, 0), ("det", 1, 0)], [("det", 1, 0), ("det", 2, 1)], [("det", 0, 0), ("det", 1, 0)]]
    seen = []
    for batch in feed(steps):
        seen.append([m.clone() for m in net.pyramid.given])
        assert batch.images.shape == (2, 3, 64, 64) and not batch.images.flatten(2).std(2).any(), "no pixels are kept"
    assert len(calls) == 2 and net.pyramid.given is None, "the third step is from memory"
    assert all(a.equal(b) for a, b in zip(seen[0], seen[2]))
    again = collate([views["det", 1, 0], views["det", 2, 1]]).to("cpu")
    with torch.no_grad():
        maps = net.pyramid.backbone(again.images)
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(seen[1], maps))
    calls.clear()
    other, _ = make("level")
    other.pyramid.backbone.register_forward_hook(lambda *_: calls.append(1))
    for batch, maps in zip(bridge.KeptViews(views, other, feed.memory)(steps), seen):
        assert all(a.equal(b) for a, b in zip(other.pyramid.given, maps)), "another step takes what this one kept"
    assert not calls
    with pytest.raises(InputError, match="a part of the backbone trains"):
        recipe = bridge.recipe_of("kept", preset("cpu"))
        bridge.KeptViews(views, bridge.make_step("det", frozen_backbone("mobilenet_v2"), 5, 64, recipe))


def test_our_assigner_chooses_for_fcos(bridge, step_of_bridge):
    "What it hands to FCOS's losses is what `assign` chooses, but for locations outside of their box."
    make, views, _ = step_of_bridge
    net, _ = make("assigner")
    batch, seen = collate([views["det", i, 0] for i in range(4)]).to("cpu"), []
    net.fcos.head.compute_loss = lambda targets, outputs, anchors, found: seen.extend(zip(anchors, found)) or {}
    net.train()(batch.images, [{"boxes": b, "labels": t} for b, t in zip(batch.boxes, batch.labels)])
    positive = 0
    for (anchors, found), boxes in zip(seen, batch.boxes):
        points = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert points[0].tolist() == [4, 4] and points[-1].tolist() == [60, 60], "the middles of 8 x 8 squares"
        ours = bridge.assign(points, boxes, torch.zeros(len(boxes)).bool(), 8).index
        for point, chosen, box in zip(points.tolist(), found.tolist(), ours.tolist()):
            x1, y1, x2, y2 = boxes[max(box, 0)].tolist() if len(boxes) else (0, 0, 0, 0)
            assert chosen == (box if box >= 0 and x1 < point[0] < x2 and y1 < point[1] < y2 else -1)
            positive += chosen >= 0
    assert len(seen) == 4 and positive > 4


def test_steps_of_the_bridge_become_cells(bridge, root, tmp_path, capsys, monkeypatch):
    "One that FCOS's losses teach, one that ours do, and our network; other settings than a cell's are refused."
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "start.pt")
    words = ["--data-root", str(root), "--weights", str(tmp_path / "start.pt"), "--preset", "smoke", "--folds", "0",
             "--out", str(tmp_path / "cells"), "net.backbone=mobilenet_v2", "cached_views=1"]
    assert bridge.main(["--steps", "assigner,recipe,ours,levels,towers,views", *words]) == 0
    cells = {c.system: c for c in map(read_cell, (tmp_path / "cells").glob("*.json"))}
    assert sorted(cells) == ["bridge_assigner", "bridge_levels", "bridge_ours", "bridge_recipe", "bridge_towers", "bridge_views"]
    assert not cells.pop("bridge_views").recipe["kept"]
    for cell in cells.values():
        assert cell.fold == 0 and {"AP", "AP50", "AP_small", "AP_medium", "AP_large"} <= cell.matrix["det"].keys()
        assert len(cell.evidence["det"]["images"]) and cell.recipe["kept"] and cell.presentations["det"] > 0
    assert len({c.presentations["det"] for c in cells.values()}) == 1
    assert cells["bridge_assigner"].recipe["middle"] and "middle" not in cells["bridge_recipe"].recipe
    monkeypatch.setattr(bridge, "run_cell", lambda *_: pytest.fail("it was trained"))
    assert bridge.main(["--steps", "recipe", *words, "lr=0.5"]) == 2
    assert "lr: 0.002 in the file, 0.5 asked for" in capsys.readouterr().err
    monkeypatch.setitem(bridge.STEPS, "recipe", ("x", {"settings": "ours", "layers": 3}))
    assert bridge.main(["--steps", "recipe", *words]) == 2
    assert "layers: 2 in the file's recipe, 3 now" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["specialist_cls", "bridge_recipe"])
def test_a_cut_cell_goes_on_to_the_same_network(bridge, specialists, root, tmp_path, monkeypatch, system):
    "Cut after 10 of 12 epochs: the first draws dropout, the second computes its kept views anew."
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "start.pt")
    cfg, nets = replace_fields(preset("smoke"), root=str(root), backbone="mobilenet_v2", weights=str(tmp_path / "start.pt"),
                               epochs_cls=12, epochs_det=12, cached_views=2), []
    measure = specialists.measure
    monkeypatch.setattr(specialists, "measure", lambda net, *more: nets.append(net.state_dict()) or measure(net, *more))

    def make(folder, cut):
        def say(text):
            said.append(text)
            if cut and "epoch 10 of 12" in text:
                raise KeyboardInterrupt

        said = []
        run_cell(Cell(system, cfg, 0), tmp_path / folder, say, {**specialists.RUNNERS, **bridge.runners()})
        return said

    with pytest.raises(KeyboardInterrupt):
        make("cut", True)
    assert [path.name for path in (tmp_path / "cut").glob("*.unfinished/*.pt")] == ["specialist.pt"]
    assert not any("epoch 10" in text for text in make("cut", False)), "it went on"
    assert any("epoch 10" in text for text in make("whole", False)) and not list((tmp_path / "cut").glob("*.unfinished"))
    went_on, whole = nets
    assert whole.keys() == went_on.keys() and all(torch.equal(whole[name], went_on[name]) for name in whole)


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    "A folder with the two files of a run, as far as they hold paths; what is kept goes to tmp_path/kept."
    results = {"data": {"root": "/home/me/minis", "digest": "ab12", "reading": ["seg: /home/me/minis/voc, masks"]},
               "config": {"data": {"root": "/home/me/minis", "synthetic_dir": "/home/me/sets"}, "net": {"weights": "/w/b0.pt"}},
               "rules": [{"name": "data: layout", "value": "/home/me/minis"}, {"name": "data: images", "value": "seg 12/6"}]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    (tmp_path / "run/log.jsonl").write_text('{"stage": "seg"}\n')
    monkeypatch.setattr(collect, "OUT", tmp_path / "kept")
    return tmp_path / "run"


def test_what_is_kept_of_a_run_names_no_folder(finished_run):
    assert collect.main([str(finished_run), "mine"]) == 0
    kept = json.loads((collect.OUT / "mine.json").read_text())
    assert kept["data"] == {"root": "minis", "digest": "ab12", "reading": ["seg: minis/voc, masks"]}
    assert kept["config"] == {"data": {"root": "minis", "synthetic_dir": "sets"}, "net": {"weights": "b0.pt"}}
    assert [rule["value"] for rule in kept["rules"]] == ["minis", "seg 12/6"], "a slash makes no path"
    assert (collect.OUT / "mine.jsonl").read_text() == '{"stage": "seg"}\n'


@pytest.mark.parametrize("text, last", [
    ("/home/me/minis", "minis"), ("minis/", "minis"), (r"C:\Users\me\minis", "minis"), (r"C:\Users\me/sets\b0.pt", "b0.pt"),
    (r"\\server\me\minis", "minis"), ("imagenet", "imagenet"), ("", "")])
def test_paths_are_cut_at_both_separators(text, last):
    assert collect.last_part(text) == last


def test_a_path_with_a_separator_at_its_end_is_cut_in_sentences():
    record = {"root": "data/", "reading": ["seg: data/voc, masks"], "images": 7}
    assert collect.cut(record, "data/") == {"root": "data", "reading": ["seg: data/voc, masks"], "images": 7}
    assert collect.cut(["/me/sets/voc", "/me/sets/"], "/me/sets/") == ["sets/voc", "sets"]
    assert collect.cut(["a/b"], "/") == ["a/b"]


@pytest.mark.parametrize("path, texts, kept", [
    ("/data", ["train/data/ with train/labels.json", "det: /data/coco, boxes"], ["train/data/ with train/labels.json",
                                                                                 "det: data/coco, boxes"]),
    ("./", ["2.14.1", "b0.pt", "./", "./voc"], ["2.14.1", "b0.pt", ".", "./voc"]),
    ("/me/set", ["/me/sets/voc", "/me/set-2", "in /me/set."], ["/me/sets/voc", "/me/set-2", "in set."]),
    ("data", ["data/voc", "no data"], ["data/voc", "no data"]),
])
def test_a_path_is_cut_where_it_stands_whole(path, texts, kept):
    assert collect.cut(texts, path) == kept


@pytest.mark.parametrize("name", ["results.json", "log.jsonl"])
def test_a_run_without_its_files_is_named(finished_run, capsys, name):
    (finished_run / name).unlink()
    assert collect.main([str(finished_run), "mine"]) == 2
    assert f"error: {finished_run / name}: cannot be read (No such file or directory)." in capsys.readouterr().err
    assert not collect.OUT.exists()
