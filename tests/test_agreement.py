"""Boxes with and without mask refinement: records of saved networks, and what is refused."""
import json
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import agreement  # noqa: E402
import one_factor  # noqa: E402

from unified_onehead.compare.folds import fold_minis, image_name  # noqa: E402
from unified_onehead.compare.statistics import scores_of  # noqa: E402
from unified_onehead.core.boxes import resize_xyxy  # noqa: E402
from unified_onehead.core.files import InputError  # noqa: E402
from unified_onehead.core.config import preset, replace_fields  # noqa: E402
from unified_onehead.data.cache import MiniDataset  # noqa: E402
from unified_onehead.data.records import collate, letterbox  # noqa: E402
from unified_onehead.learn.checkpoint import load_model, save_model  # noqa: E402
from unified_onehead.model import answers  # noqa: E402
from unified_onehead.model.net import build_network, class_counts  # noqa: E402
from unified_onehead.data.sources import read_minis  # noqa: E402
from unified_onehead.data.sources import data_digest  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402
from unified_onehead.learn.task import make_tasks  # noqa: E402


CELLS = ROOT / "benchmarks" / "results" / "quality"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A data root, and an untrained model that sees boxes everywhere."
    folder = tmp_path_factory.mktemp("agreement")
    root = make_synthetic(folder / "minis", 0, 4, 4, 32)
    cfg = replace_fields(preset("smoke"), root=str(root), device="cpu", threads=1)
    classes = read_minis(str(root)).classes
    net, _ = build_network(cfg, class_counts(classes))
    layer = net.head.layers[-1]
    with torch.no_grad():
        layer.conv.bias[4 * layer.fine**2:5 * layer.fine**2] = 2.0
    save_model(folder / "model.pt", net, cfg, classes)
    return root, folder


def found(saved, monkeypatch, names):
    "Detections of a saved model's first val image without and with the mask, whose classes have these names."
    net, cfg, classes, _ = load_model(saved[1] / "model.pt")
    monkeypatch.setitem(classes, "seg", [*names, *classes["seg"][len(names):]])
    data = MiniDataset(read_minis(str(saved[0])).records["det"]["val"], 1 << 30)
    sample = letterbox(data.sample(0), cfg.data.size)
    output = net(collate([sample]).images)
    both = []
    for fields in ({"mask_score_weight": 0.0, "mask_box_weight": 0.0}, {}):
        task = make_tasks(classes, replace_fields(cfg, **fields), net.stride)["det"]
        both.append(task.predict(output, 0, sample, cfg.data.size))
    return both


def test_only_namesakes_are_asked_about(saved, monkeypatch):
    "Synthetic things share no name with VOC's classes, so nothing changes; one shared name, and its boxes do."
    alone, asked = found(saved, monkeypatch, ["background"])
    assert len(alone.scores) > 20 and torch.equal(alone.scores, asked.scores) and torch.equal(alone.boxes, asked.boxes)
    classes = read_minis(str(saved[0])).classes["det"]
    alone, asked = found(saved, monkeypatch, ["background", *classes])
    assert len(alone.scores) > 20 and asked.scores.max() < 0.7 * alone.scores.max(), "a mask that knows nothing doubts them all"


def test_every_reading_is_recorded(saved):
    record = agreement.read_model(saved[1] / "model.pt", saved[0], "cpu")
    assert list(record["readings"]) == list(agreement.READINGS)
    assert all(set(r) == {"AP", "AP50", "classes"} for r in record["readings"].values())


def test_a_detector_alone_borrows_masks(saved, tmp_path):
    "The folder of `single` is read with the segmenter's masks, not the detector's; files of two cells are refused."
    root, folder = saved
    net, cfg, classes, _ = load_model(folder / "model.pt")
    save_model(tmp_path / "det.pt", net, cfg, classes)
    layer, images = net.head.layers[-1], torch.randn(1, 3, cfg.data.size, cfg.data.size)
    with torch.no_grad():
        alone = net(images)
        layer.conv.bias[layer.channels("seg")][:layer.fine**2] += 50.0  # a segmenter that sees nothing but background
        layer.conv.bias[layer.channels("det")] += 1.0
        save_model(tmp_path / "seg.pt", net, cfg, classes)
        both, stride, system, *_ = agreement.load_network(tmp_path, "cpu")
        answer = both(images)
    assert system == "single" and stride == net.stride and torch.equal(answer.detection, alone.detection)
    assert (answer.segmentation.argmax(1) == 0).all() and (alone.segmentation.argmax(1) > 0).any()
    record = agreement.read_model(tmp_path, root, "cpu")
    assert record["strategy"] == "single" and set(record["readings"]) == set(agreement.READINGS)
    save_model(tmp_path / "seg.pt", net, replace_fields(cfg, seed=1), classes)
    with pytest.raises(InputError, match="det.pt and seg.pt differ in settings or classes"):
        agreement.load_network(tmp_path, "cpu")


def test_a_network_that_has_seen_val_is_refused(saved, tmp_path, capsys):
    "By the digest of its data, whatever its name; before anything is read."
    root, folder = saved
    net, cfg, classes, _ = load_model(folder / "model.pt")
    minis = read_minis(str(root))
    fold = fold_minis(minis, cfg, 0)
    other, wrong, silent = (tmp_path / n for n in ("lwf-x-32px-seed0", "lwf-x-32px-seed0-fold1", "lwf-x-32px-seed0-fold2"))
    for place, data in ((other, data_digest(fold)), (wrong, data_digest(fold)), (silent, None)):
        place.mkdir()
        for name in ("stage3.pt", "det.pt", "seg.pt"):
            save_model(place / name, net, cfg, classes, **({"data": data} if data else {}))
    save_model(folder / "stage3.pt", net, cfg, classes, data=data_digest(minis))
    words = ["--data-root", str(root), "--device", "cpu", "--out", str(tmp_path / "out")]
    for model in (other / "stage3.pt", other, wrong / "stage3.pt", wrong):
        assert agreement.main([str(model), *words]) == 2
        assert f"{model}: was trained on other data (digest {data_digest(fold)})" in capsys.readouterr().err
    assert agreement.main([str(silent / "stage3.pt"), *words]) == 2
    assert "is a network of a fold (2), but does not say what it was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "no record was written"
    assert agreement.main([str(folder / "stage3.pt"), *words]) == 0, "its own data, its own val"


def test_a_network_of_a_fold_is_read_on_what_its_fold_held_out(saved, tmp_path, monkeypatch):
    "The folds pooled are all images, each once; the record keeps what pooling needs."
    root, folder = saved
    net, cfg, classes, _ = load_model(folder / "model.pt")
    minis, out = read_minis(str(root)), tmp_path / "out"
    words = ["--data-root", str(root), "--device", "cpu", "--out", str(out)]
    for k in (0, 3):
        place = tmp_path / f"lwf-x-32px-seed0-fold{k}"
        place.mkdir()
        save_model(place / "stage3.pt", net, cfg, classes, data=data_digest(fold_minis(minis, cfg, k)))
        monkeypatch.chdir(place)
        assert agreement.fold_of("stage3.pt") == k and agreement.main(["stage3.pt", *words]) == 0
    records = agreement.read_fold_records(out)
    assert [r["fold"] for r in records] == [0, 3] and agreement.read_records(out) == [], "they are no records of val"
    assert [p.stem[-6:] for p in sorted(out.glob("*.json"))] == ["-fold0", "-fold3"]
    for r in records:
        held = fold_minis(minis, cfg, r["fold"]).records["det"]["val"]
        for name in agreement.POOLED:
            assert r["evidence"][name]["images"] == [image_name(record, minis.place("det")) for record in held]
            assert abs(scores_of({"det": r["evidence"][name]})["AP"] - r["readings"][name]["AP"]) < 1e-6
    pooled, = agreement.pooled_readings(records).values()
    images = pooled["boxes alone"]["evidence"]["det"]["images"]
    assert pooled["folds"] == [0, 3] and images == [n for r in records for n in r["evidence"]["boxes alone"]["images"]]


def test_every_record_is_its_cell():
    "With sides and score a record repeats the cell of the same name, to the last digit; networks of folds were trained again."
    matches = []
    for path in sorted(p for p in agreement.OUT.glob("*.json") if "-fold" not in p.stem):
        record, cell = (json.loads((folder / path.name).read_text()) for folder in (agreement.OUT, CELLS))
        read = record["readings"]["score and sides"]
        matches.append(agreement.record_name(record) == path.stem and cell["fold"] == record.get("fold")
                       and all(read[m] == cell["metrics"][m] for m in ("AP", "AP50")))
    assert len(matches) == len(agreement.read_records()) >= 15 and all(matches)


def test_a_line_of_the_table_by_hand():
    "Two seeds: means .2 and .3, gains .2 and 0."
    def record(seed, alone, both):
        read = dict(zip(agreement.READINGS, ({"AP": v, "AP50": v} for v in (alone, 0.5, 0.5, both))))
        return {"strategy": "single", "weights": "w.pt", "size": 64, "seed": seed, "device": "cpu", "readings": read}

    table = agreement.readings_table([record(0, 0.1, 0.3), record(1, 0.3, 0.3)])
    line = next(t for t in table.splitlines() if t.startswith("| single | AP |"))
    assert "| 0.2000 ± 0.1414 (2) |" in line and "| 0.3000 ± 0.0000 (2) | +0.2000, +0.0000 | w.pt | 64 px | cpu |" in line
    assert agreement.readings_table([]) == ""


def test_the_command_keeps_records_and_refuses_what_is_no_model(saved, capsys):
    root, folder = saved
    words = ["--data-root", str(root), "--device", "cpu", "--out", str(folder / "out")]
    assert agreement.main([str(folder / "model.pt"), *words]) == 0
    record, = agreement.read_records(folder / "out")
    assert record["strategy"] == "progressive_kd" and "evidence" not in record
    assert agreement.main([str(folder / "model.pt"), *words, "--evidence"]) == 0
    kept, = agreement.read_records(folder / "out")
    assert [*kept["evidence"]] == [*agreement.POOLED] and kept["readings"] == record["readings"]
    assert agreement.main([str(folder / "nothing.pt"), *words]) == 2 and "no such model" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such model"):
        agreement.read_model(folder / "nothing.pt", root)


def test_one_factor_for_both_axes_is_another_way_back(saved, monkeypatch, tmp_path, capsys):
    boxes = torch.tensor([[0., 0., 256., 171.]])
    there = one_factor.by_one_factor(boxes, (171, 256), (427, 640))
    assert torch.allclose(there, torch.tensor([[0., 0., 640., 427.5]])), "half a pixel below the photograph"
    model, out, called = saved[1] / "model.pt", tmp_path / "found.json", []
    monkeypatch.setattr(one_factor, "by_one_factor", lambda *args: called.append(args) or boxes.new_zeros(args[0].shape))
    assert one_factor.main([str(model), "--data-root", str(saved[0]), "--device", "cpu", "--out", str(out)]) == 0
    record, = json.loads(out.read_text())
    exact = agreement.read_model(model, saved[0], "cpu")["readings"]["score and sides"]
    assert record["factor for each axis"] == {m: exact[m] for m in ("AP", "AP50")}, "it is what every reader does"
    assert called and record["one factor"] == {"AP": 0.0, "AP50": 0.0}, "and the other is asked in its place"
    assert answers.resize_xyxy is resize_xyxy
    folder = tmp_path / "net-fold1"
    folder.mkdir()
    assert one_factor.main([str(folder), "--data-root", str(saved[0]), "--out", str(out)]) == 2
    assert "is a network of a fold" in capsys.readouterr().err and json.loads(out.read_text()) == [record]
