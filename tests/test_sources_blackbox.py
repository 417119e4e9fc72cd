"""Layouts and faults of the three minis, through the public functions only. The pages of `data` hold the finer tests."""
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from unified_onehead import cli
from unified_onehead.core.files import InputError
from unified_onehead.core.config import TASKS
from unified_onehead.data.records import load_sample
from unified_onehead.data.sources import read_minis
from unified_onehead.data.check import check_minis
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.data.pictures import SYNTHETIC_DET


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("minis") / "data", n_train=20, n_val=20, side=48)


@pytest.fixture
def minis(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "data")


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def contents(root):
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def facts(minis):
    "What a layout must not change: everything but the folders."
    return {task: [(os.path.basename(r.path).lower(), r.image_id, r.boxes, [minis.classes["det"][n] for n in r.labels],
                    r.crowd, r.category) for split in ("train", "val") for r in minis.records[task][split]]
            for task in TASKS}


def annotations_beside_splits(root):
    det = root / "mini_coco_det"
    (det / "annotations").mkdir()
    for split in ("train", "val"):
        (det / split / "labels.json").rename(det / "annotations" / f"instances_{split}.json")
        for path in (det / split / "data").iterdir():
            path.rename(det / split / path.name)
        (det / split / "data").rmdir()


def coco_2017(root):
    det = root / "mini_coco_det"
    (det / "annotations").mkdir()
    for split in ("train", "val"):
        (det / split / "labels.json").rename(det / "annotations" / f"instances_{split}2017.json")
        (det / split / "data").rename(det / f"{split}2017")


def images_folder(root):
    coco_2017(root)
    (root / "mini_coco_det" / "images").mkdir()
    for split in ("train", "val"):
        (root / "mini_coco_det" / f"{split}2017").rename(root / "mini_coco_det" / "images" / split)


def masks_side_by_side(root):
    for split in ("train", "val"):
        folder = root / "mini_voc_seg" / split
        for sub in ("JPEGImages", "SegmentationClass"):
            for path in (folder / sub).iterdir():
                path.rename(folder / path.name)
            (folder / sub).rmdir()


def other_names(root):
    for old, new in (("mini_coco_det", "coco"), ("mini_voc_seg", "voc"), ("imagenette_160", "imagenette2-160")):
        (root / old).rename(root / new)


def capital_suffixes_and_bom(root):
    for path in (root / "imagenette_160").rglob("*.JPEG"):
        path.rename(path.with_suffix(".JPG"))
    labels = root / "mini_coco_det" / "val" / "labels.json"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())


LAYOUTS = (annotations_beside_splits, coco_2017, images_folder, masks_side_by_side, other_names, capital_suffixes_and_bom)


@pytest.mark.parametrize("change", LAYOUTS)
def test_layouts_give_the_same_records(pristine, minis, change):
    change(minis)
    expected, found = facts(read_minis(pristine)), facts(read_minis(minis))
    for task in TASKS:
        strip = [(row[0].rsplit(".", 1)[0], *row[1:]) for row in found[task]]
        assert strip == [(row[0].rsplit(".", 1)[0], *row[1:]) for row in expected[task]]
    assert check_minis(minis).ok


def test_own_three_datasets_through_a_whole_run(tmp_path, capsys):
    "Folders, categories and numbers of classes of somebody's own: 2 to detect, 3 to segment, 4 to classify; nothing is edited."
    rng, own = np.random.default_rng(0), tmp_path / "own"

    def photo(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (5, 7, 3)).astype(np.uint8))
        small.resize((60, 40), Image.Resampling.BICUBIC).save(path)

    for split, count in (("train", 8), ("val", 4)):
        notes = [dict(id=k + 1, image_id=k, category_id=70 + 20 * (k % 2), bbox=[5, 5, 30, 20], iscrowd=0) for k in range(count)]
        categories = [dict(id=70, name="nut"), dict(id=90, name="bolt")]
        images = [dict(id=k, file_name=f"{split}{k}.jpg", width=60, height=40) for k in range(count)]
        mask = np.zeros((40, 60), np.uint8)
        mask[:20], mask[30:35], mask[35:] = 1, 2, 255
        (own / f"surfaces/{split}/SegmentationClass").mkdir(parents=True)
        for k in range(count):
            photo(own / f"parts/{split}/data/{split}{k}.jpg")
            photo(own / f"surfaces/{split}/JPEGImages/{k}.jpg")
            Image.fromarray(mask).save(own / f"surfaces/{split}/SegmentationClass/{k}.png")
            for name in ("good", "scratched", "bent", "lost"):
                photo(own / f"quality/{split}/{name}/{k}.jpg")
        (own / f"parts/{split}/labels.json").write_text(json.dumps(dict(images=images, annotations=notes, categories=categories)))
    (own / "surfaces/classes.txt").write_text("rust\npaint\n")
    out = tmp_path / "run"
    assert cli.main(["run", "--data-root", str(own), "--preset", "smoke", "--device", "cpu", "--out", str(out)]) == 0
    classes = torch.load(out / "model.pt", weights_only=True)["classes"]
    assert {task: sorted(names) for task, names in classes.items()} == {
        "det": ["bolt", "nut"], "seg": ["background", "paint", "rust"], "cls": ["bent", "good", "lost", "scratched"]}
    capsys.readouterr()
    assert cli.main(["eval", "--weights", str(out / "model.pt"), "--data-root", str(own), "--json"]) == 0
    assert {"AP", "mIoU", "Top1"} <= set(json.loads(capsys.readouterr().out))


def test_reading_and_checking_write_nothing(minis):
    before = contents(minis)
    read_minis(minis)
    check_minis(minis)
    assert contents(minis) == before


def labels(root, split="train"):
    return root / "mini_coco_det" / split / "labels.json"


FAULTS = {
    "json cut off": (lambda d: labels(d).write_text(labels(d).read_text()[:300]), "labels.json: not readable as JSON"),
    "json of something else": (lambda d: labels(d).write_text('{"shapes": []}'), "no list of images"),
    "no labels": (lambda d: [labels(d).unlink(), labels(d, "val").unlink()], "annotations/instances_train.json"),
    "a split is missing": (lambda d: shutil.rmtree(d / "imagenette_160/val"), "the val split of classification"),
    "a dataset is missing": (lambda d: shutil.rmtree(d / "mini_voc_seg"), "SegmentationClass"),
    "an image is missing": (lambda d: (d / "mini_coco_det/train/data/000000000001.jpg").unlink(), "000000000001.jpg"),
    "unknown category id": (lambda d: edit(labels(d), lambda j: j["annotations"][0].update(category_id=0)), "id 0"),
    "unknown image id": (lambda d: edit(labels(d), lambda j: j["annotations"][0].update(image_id=-3)), "id -3"),
    "no box": (lambda d: edit(labels(d), lambda j: j["annotations"][0].pop("bbox")), "'bbox'"),
    "box of text": (lambda d: edit(labels(d), lambda j: j["annotations"][0].update(bbox=list("abcd"))), "labels.json"),
    "box with NaN": (lambda d: edit(labels(d), lambda j: j["annotations"][0].update(bbox=[1, 1, float("nan"), 2])), "finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_paragraph_and_a_problem(minis, name):
    change, words = FAULTS[name]
    change(minis)
    with pytest.raises(InputError) as caught:
        read_minis(minis)
    message = str(caught.value)
    assert words in message and "\n" not in message and str(minis) in message, message
    report = check_minis(minis)
    assert not report.ok and any(words in problem for problem in report.problems)
    assert len(report.counts) == 2, "the two sound datasets are checked all the same"


def test_files_that_cannot_be_decoded(minis):
    records = read_minis(minis).records
    for task in TASKS:
        with open(records[task]["val"][0].path, "r+b") as file:
            file.truncate(120)
    with pytest.raises(InputError, match="cannot be decoded"):
        load_sample(records["det"]["val"][0])
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(records["seg"]["train"][0].mask_path)
    with pytest.raises(InputError, match="9 x 7 pixels"):
        load_sample(records["seg"]["train"][0])
    report = check_minis(minis)
    broken = {records[task]["val"][0].path for task in TASKS} | {records["seg"]["train"][0].mask_path}
    assert {path for path in broken if any(problem.startswith(path) for problem in report.problems)} == broken


def test_folder_that_is_not_there(tmp_path):
    for function in (read_minis, check_minis):
        with pytest.raises(InputError, match="no such folder"):
            function(tmp_path / "nowhere")


def test_class_names(minis):
    names = ("pink_pentagon", "red_circle")
    assert read_minis(minis, names).classes["det"] == list(names)
    with pytest.raises(InputError, match="the nearest name is 'pink_pentagon'"):
        read_minis(minis, ("pink_pentagram",))
    trained = read_minis(minis).classes
    edit(labels(minis, "val"), lambda j: [a.update(bbox=[0, 0, 0, 0]) for a in j["annotations"] if a["category_id"] == 1])
    shutil.rmtree(minis / "imagenette_160/train")
    shutil.rmtree(next((minis / "imagenette_160/val").iterdir()))
    hidden = read_minis(minis, tasks=("det", "cls"), splits=("val",), classes=trained)
    assert {task: hidden.classes[task] for task in ("det", "cls")} == {task: trained[task] for task in ("det", "cls")}
    for record in hidden.records["cls"]["val"]:
        assert trained["cls"][record.category] in record.path


def test_the_ten_most_frequent_names(minis):
    "More than ten names, and every image shows a frequent one: frequency decides; a name in one split only is out."
    for split in ("train", "val"):
        def change(data, split=split):
            rare, alone = 901, 902
            data["categories"] += [{"id": rare, "name": "rare"}, {"id": alone, "name": f"only {split}"}]
            first = data["annotations"][0]
            extra = [(rare, 1), (alone, 90)]
            data["annotations"] += [{**first, "id": 5000 + k, "category_id": i} for i, n in extra for k in range(n)]
        edit(labels(minis, split), change)
    found = read_minis(minis)
    assert set(found.classes["det"]) == set(SYNTHETIC_DET)
    assert any("rare" in warning for warning in check_minis(minis).warnings)


def test_leaks_are_left_out_of_train(minis):
    voc = minis / "mini_voc_seg"
    for sub, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        shutil.copy(voc / f"val/{sub}/synthetic_900003.{suffix}", voc / f"train/{sub}/another_name.{suffix}")
    image = minis / "imagenette_160/train/plain_red"  # same name, other picture: no leak
    shutil.copy(image / "plain_red_000001.JPEG", image / "plain_red_900001.JPEG")
    found = read_minis(minis)
    assert found.leaks == {"seg": ["another_name.jpg"], "det": [], "cls": []}
    assert len(found.records["seg"]["train"]) == 20 and len(found.records["seg"]["val"]) == 20
    assert any("another_name.jpg" in note for note in found.notes)


@pytest.mark.skipif(not os.environ.get("UNIFIED_ONEHEAD_REAL_DATA"), reason="UNIFIED_ONEHEAD_REAL_DATA is not set")
def test_real_minis():
    report = check_minis(os.environ["UNIFIED_ONEHEAD_REAL_DATA"])
    assert report.ok, report.text()
    assert set(report.classes["det"]) == {"person", "car", "dog", "cat", "chair", "dining table", "book", "bottle", "cup", "bird"}
    assert len(report.leaks["det"]) == 5
