"""The mask's opinion of a box: records of saved networks, and what is refused. The arithmetic is on the page of the grid."""
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import agreement  # noqa: E402

from unified_onehead.config import InputError, preset, replace_fields  # noqa: E402
from unified_onehead.data import MiniDataset, collate, letterbox  # noqa: E402
from unified_onehead.learner import load_model, save_model  # noqa: E402
from unified_onehead.net import build_network  # noqa: E402
from unified_onehead.sources import read_minis  # noqa: E402
from unified_onehead.synthetic import make_synthetic  # noqa: E402
from unified_onehead.task import class_counts, make_tasks  # noqa: E402


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
    for fields in ({"agreement": 0.0, "outline": 0.0}, {}):
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
    "The record is of `single`; a segmenter of other classes is refused."
    root, folder = saved
    model = str(folder / "model.pt")
    assert agreement.main([model, "--masks", model, "--data-root", str(root), "--device", "cpu", "--out", str(tmp_path)]) == 0
    record, = agreement.read_records(tmp_path)
    assert record["strategy"] == "single" and record["readings"] == agreement.read_model(model, root, "cpu")["readings"]
    net, cfg, classes, _ = load_model(model)
    save_model(tmp_path / "other.pt", net, cfg, {**classes, "seg": classes["seg"][::-1]})
    with pytest.raises(InputError, match="other.pt: knows other classes"):
        agreement.read_model(model, root, "cpu", str(tmp_path / "other.pt"))


def test_the_command_keeps_records_and_refuses_what_is_no_model(saved, capsys):
    root, folder = saved
    words = ["--data-root", str(root), "--device", "cpu", "--out", str(folder / "out")]
    assert agreement.main([str(folder / "model.pt"), *words]) == 0
    assert [r["strategy"] for r in agreement.read_records(folder / "out")] == ["progressive_kd"]
    assert agreement.main([str(folder / "nothing.pt"), *words]) == 2 and "no such model" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such model"):
        agreement.read_model(folder / "nothing.pt", root)
