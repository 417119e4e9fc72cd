"""The graders' side: their flags, their layouts, both protocols, and a class graded into one table."""
import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from unified_onehead import cli
from unified_onehead.core.config import preset, replace_fields
from unified_onehead.data.classes import WNIDS
from unified_onehead.data.pictures import VOC_CLASSES
from unified_onehead.learn.checkpoint import save_model
from unified_onehead.model.backbone import build_backbone
from unified_onehead.model.net import OneHead, class_counts
from unified_onehead.deploy.predictor import Predictor

FLAGS = ["--tasks", "all", "--batch", "8", "--cpu"]  # as the assistants write them
NAMES = {"seg": list(VOC_CLASSES), "det": ["person", "car", "dog"], "cls": sorted(WNIDS.values())}
KEYS = {"AP", "AP50", "mIoU", "Top1"}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    "A network of random weights that finds something in every picture, at the side at which the course feeds it."
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.manual_seed(0)
    net = OneHead(build_backbone()[0], class_counts(NAMES), 24)
    last = net.head.layers[-1]
    with torch.no_grad():
        last.conv.weight *= 30  # answers that differ from place to place
        last.conv.bias[4 * last.fine**2:5 * last.fine**2] = 1  # and confidence in them
    save_model(path, net, replace_fields(preset("smoke"), size=512, width=24), NAMES)
    return path


def picture(path, rng, side=(512, 512)):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize(side, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def val(model, tmp_path_factory):
    """Three minis with val alone, in the assignment's layout. Their labels come from the network's own answers, so that scores
    are not 0 by any protocol; ids of categories have gaps, as COCO's have."""
    root, rng, predict = tmp_path_factory.mktemp("val") / "data", np.random.default_rng(0), Predictor(model, "cpu")
    coco = {"images": [], "annotations": [], "categories": [{"id": k, "name": n} for k, n in zip((1, 3, 18), NAMES["det"])]}
    for i in (1, 2):
        path = picture(root / f"mini_coco_det/val/data/{i:06}.jpg", rng)
        found = predict(path)
        assert len(found["boxes"]) > 6
        coco["images"].append({"id": i, "file_name": path.name, "width": 512, "height": 512})
        for box, label in zip(found["boxes"][:6].tolist(), found["labels"][:6].tolist()):
            x1, y1, x2, y2 = box
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, "image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1],
                                        "category_id": (1, 3, 18)[label], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
    (root / "mini_coco_det/val/labels.json").write_text(json.dumps(coco))
    for i in (1, 2):
        path = picture(root / f"mini_voc_seg/val/JPEGImages/2007_{i:06}.jpg", rng, (96, 64))
        mask = predict(path)["mask"].numpy().copy()
        mask[:20], mask[20:24] = 15, 255
        target = root / f"mini_voc_seg/val/SegmentationClass/{path.stem}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(target)
    for i, name in enumerate(("church", "French horn", "tench")):
        path = picture(root / f"imagenette_160/val/{name}/{i}.JPEG", rng, (80, 60))
    best = NAMES["cls"][int(predict(path)["probs"].argmax())]
    if best not in ("church", "French horn", "tench"):
        path.parent.rename(path.parent.with_name(best))
    return root


def measured(model, root, *words):
    "What `eval --json` says, and its notes."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["eval", "--weights", str(model), "--data_root", str(root), *FLAGS, "--json", *words])
    assert code == 0, err.getvalue()
    return json.loads(out.getvalue()), err.getvalue()


@pytest.fixture(scope="session")
def scores(model, val):
    found, said = measured(model, val, "--protocol", "both")
    assert [f"{task}: measured on val, {n} images" in said for task, n in (("detection", 2), ("segmentation", 2),
                                                                         ("classification", 3))] == [True] * 3, said
    assert KEYS < set(found) and list(found["course"]) == ["mIoU", "mAP", "Top-1"]
    assert all(0 < found[key] <= 1 for key in KEYS - {"Top1"}) and all(0 < found["course"][key] <= 1 for key in ("mAP", "mIoU"))
    return found


def flat_as_coco(det, seg, cls, split):
    "Names as the public sets have them; the JSON beside the pictures' folder."
    (det / "val/data").rename(split(det) / "images")
    (det / "val/labels.json").rename(split(det) / "annotations.json")
    for name in ("JPEGImages", "SegmentationClass"):
        (seg / "val" / name).rename(split(seg) / name)
    return cls


def short_names(det, seg, cls, split):
    "imgs, img, mask; the JSON in a folder of its own."
    (det / "val/data").rename(split(det) / "imgs")
    (split(det) / "annotations").mkdir()
    (det / "val/labels.json").rename(split(det) / "annotations/hidden_set.json")
    (seg / "val/JPEGImages").rename(split(seg) / "img")
    (seg / "val/SegmentationClass").rename(split(seg) / "mask")
    return cls


def plural_names(det, seg, cls, split):
    "images and masks; the JSON among the pictures; the classes' folder without its line below."
    (det / "val/data").rename(split(det) / "images")
    (det / "val/labels.json").rename(split(det) / "images/_annotations.coco.json")
    (seg / "val/JPEGImages").rename(split(seg) / "images")
    (seg / "val/SegmentationClass").rename(split(seg) / "masks")
    return cls.rename(cls.with_name("imagenette160"))


@pytest.mark.parametrize("below", ["", "test"])
@pytest.mark.parametrize("layout", [flat_as_coco, short_names, plural_names])
def test_the_graders_layouts_give_the_scores_of_val_to_the_last_digit(layout, below, model, val, scores, tmp_path):
    root = shutil.copytree(val, tmp_path / "hidden")
    det, seg, cls = (root / name for name in ("mini_coco_det", "mini_voc_seg", "imagenette_160"))

    def split(folder):
        (folder / below).mkdir(exist_ok=True)
        return folder / below

    cls = layout(det, seg, cls, split)
    for folder in list((cls / "val").iterdir()):
        folder.rename(split(cls) / folder.name)
    for folder in (det, seg, cls):
        (folder / "val").rmdir()
    found, said = measured(model, root, "--protocol", "both")
    assert found == scores, layout.__doc__
    assert said.count("measured on " + (below or "the whole set")) == 3, said


def test_test_is_measured_where_there_is_one_and_val_when_asked_for(model, val, scores, tmp_path):
    root = shutil.copytree(val, tmp_path / "data")
    shutil.copytree(root / "imagenette_160/val", root / "imagenette_160/test")
    for path in (root / "imagenette_160/test").rglob("*.JPEG"):
        shutil.copy(path, path.with_name("again.JPEG"))
    found, said = measured(model, root)
    assert "classification: measured on test, 6 images" in said and "detection: measured on val" in said
    assert found == {key: value for key, value in scores.items() if key != "course"}
    assert "classification: measured on val, 3 images" in measured(model, root, "--split", "val", "--tasks", "cls")[1]


def test_the_courses_names_stand_at_the_top_when_its_protocol_is_asked_for(model, val, scores):
    found, _ = measured(model, val, "--protocol", "course")
    ours = found.pop("ours")
    assert found == scores["course"] and ours == {key: value for key, value in scores.items() if key != "course"}


def test_squashed_and_letterboxed_agree_on_square_pictures(scores):
    "The pictures of detection are squares of 512: both protocols feed the same pixels, and there is no crowd."
    assert scores["course"]["mAP"] == pytest.approx(scores["AP"], abs=1e-4)


def test_the_assistants_command_as_they_type_it(model, val, scores, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "eval.py", "--weights", model, "--data_root", val, *FLAGS], cwd=tmp_path,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split() for line in done.stdout.splitlines())
    assert shown == {"mAP": f"{scores['AP']:.4f}", "AP50": f"{scores['AP50']:.4f}", "mIoU": f"{scores['mIoU']:.4f}",
                     "Top-1": f"{scores['Top1']:.4f}"}


def test_without_the_extra_ours_works_and_the_courses_says_what_to_install(model, val, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "torchmetrics.classification", None)
    words = ["eval", "--weights", str(model), "--data_root", str(val), "--tasks", "cls", "--cpu", "--json"]
    assert cli.main(words) == 0 and "Top1" in json.loads(capsys.readouterr().out)
    for protocol in ("course", "both"):
        assert cli.main([*words, "--protocol", protocol]) == 2
        said = capsys.readouterr()
        assert said.out == "" and 'pip install "unified-onehead[course]"' in said.err


@pytest.mark.parametrize("words, wanted", [
    (["--split", "test"], "test"), (["--batch", "0"], "--batch 0"), (["--weights", "nothing.pt"], "nothing.pt")])
def test_what_cannot_be_measured_is_said(words, wanted, model, val, capsys):
    assert cli.main(["eval", "--weights", str(model), "--data_root", str(val), "--cpu", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "error: " in said.err and wanted in said.err


def test_a_class_is_graded_into_one_table(model, val, scores, tmp_path, capsys):
    """Models in a folder, without a folder and with classes in another order; a text file; a missing file; an archive. Scores are
    those of `eval`; the command again measures only what is new."""
    saved = torch.load(model, weights_only=True)
    for name in ("ada", "cy", "eve"):
        (tmp_path / "class" / name).mkdir(parents=True)
    shutil.copy(model, tmp_path / "class/ada/model.pt")
    shutil.copy(model, tmp_path / "class/bo.pt")
    (tmp_path / "class/cy/model.pt").write_text("my homework")
    (tmp_path / "class/dan.zip").write_bytes(b"PK")
    torch.save({**saved, "classes": {**saved["classes"], "cls": saved["classes"]["cls"][::-1]}}, tmp_path / "class/eve/model.pt")
    (tmp_path / "class/=fay").mkdir()
    words = ["grade", str(tmp_path / "class"), "--data_root", str(val), "--out", str(tmp_path / "grades.csv"), *FLAGS[2:],
             "--protocol", "both", "--tasks", "cls,seg"]
    assert cli.main(words) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith("grades.csv: 3 graded, 3 not") and said.count("measured on val") == 2
    content = (tmp_path / "grades.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfname,")
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8-sig", newline=""))}
    assert list(rows) == ["'=fay", "ada", "bo", "cy", "dan", "eve"]
    for name in ("ada", "bo"):
        row = rows[name]
        assert (row["mIoU"], row["Top-1"]) == (f"{scores['mIoU']:.6g}", f"{scores['Top1']:.6g}")
        assert row["mAP"] == row["error"] == ""
        assert [row[f"course {k}"] for k in ("mIoU", "Top-1")] == [f"{scores['course'][k]:.6g}" for k in ("mIoU", "Top-1")]
        assert row["parameters"] == str(sum(p.numel() for p in Predictor(model, "cpu").trained.parameters()))
    assert rows["eve"]["Top-1"] != rows["ada"]["Top-1"] and rows["eve"]["mIoU"] == rows["ada"]["mIoU"]
    assert "cy/model.pt" in rows["cy"]["error"] and "unpack" in rows["dan"]["error"]
    assert "no .pt" in rows["'=fay"]["error"]
    assert cli.main(words) == 1
    assert capsys.readouterr().out.count("(as before)") == 3 and (tmp_path / "grades.csv").read_bytes() == content


def test_a_test_set_that_cannot_be_read_is_nobodys_fault(model, val, tmp_path, capsys):
    root = shutil.copytree(val, tmp_path / "data")
    broken = next((root / "imagenette_160").rglob("*.JPEG"))
    broken.write_bytes(b"no picture")
    shutil.copytree(model.parent, tmp_path / "class/ada")
    assert cli.main(["grade", str(tmp_path / "class"), "--data_root", str(root), "--out", str(tmp_path / "g.csv"), "--cpu"]) == 2
    assert broken.name in capsys.readouterr().err
    assert Path(tmp_path / "g.csv").read_text(encoding="utf-8-sig").count("\n") == 1, "no row"
