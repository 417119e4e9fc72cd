"""Every layout in which people keep the three minis, built from one small set: all give the same records."""
import json
import re
import shutil

import pytest
from PIL import Image

from unified_onehead import cli
from unified_onehead.core.files import InputError
from unified_onehead.core.config import TASKS
from unified_onehead.data.check import check_minis
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import make_synthetic

NAMED = {"train": ("train", "training", "train2017"), "val": ("val", "validation", "val2017")}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    root = make_synthetic(tmp_path_factory.mktemp("minis") / "data", n_train=20, n_val=20, side=48)
    for split in ("train", "val"):  # names that no two splits share, as in COCO, so that every layout can hold them
        labels = root / "mini_coco_det" / split / "labels.json"
        data = json.loads(labels.read_text())
        for info in data["images"]:
            new = f"{split}_{info['file_name']}"
            (labels.parent / "data" / info["file_name"]).rename(labels.parent / "data" / new)
            info["file_name"] = new
        labels.write_text(json.dumps(data))
    return root


@pytest.fixture
def minis(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "data")


def move(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def facts(minis, task):
    "What a layout must not change: names without suffixes of masks, labels by name, order aside."
    names, found = minis.classes[task], {}
    for split, records in minis.records[task].items():
        found[split] = sorted((re.sub(r"\..*", "", r.path.rsplit("/", 1)[-1]), sorted(map(tuple, r.boxes)),
                               sorted(names[n] for n in r.labels), sum(r.crowd), names[r.category] if task == "cls" else "",
                               sorted(set(Image.open(r.mask_path).getdata())) if r.mask_path else []) for r in records)
    return found


# detection: each takes the dataset's folder, where SPLIT/labels.json lies beside SPLIT/data/

def det(images, labels, rename=lambda name, split: name):
    "Images of a split to one place and its label file to another; {s} is the split."
    def build(folder):
        for split in ("train", "val"):
            data = json.loads((folder / split / "labels.json").read_text())
            (folder / split / "labels.json").unlink()
            place = folder / f".{split}"
            move(folder / split / "data", place)
            (folder / split).rmdir()
            for info in data["images"]:
                move(place / info["file_name"], folder / images.format(s=split) / info["file_name"])
                info["file_name"] = rename(info["file_name"], split)
            place.rmdir()
            target = folder / labels.format(s=split)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(data))
    return build


def roboflow(folder):
    det("{s}", "{s}/_annotations.coco.json")(folder)
    (folder / "val").rename(folder / "valid")


def one_for_all(folder):
    "One label file; the folders stand in the file names."
    det("{s}", "{s}.json", lambda name, split: f"{split}/{name}")(folder)
    parts = [json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val")]
    names = sorted({c["name"] for part in parts for c in part["categories"]})
    whole = dict(images=[], annotations=[], categories=[dict(id=k, name=name) for k, name in enumerate(names, 5)])
    for part in parts:
        number, own = len(whole["images"]), {c["id"]: names.index(c["name"]) + 5 for c in part["categories"]}
        ids = {info["id"]: number + k for k, info in enumerate(part["images"], 1)}
        whole["images"] += [{**info, "id": ids[info["id"]]} for info in part["images"]]
        whole["annotations"] += [{**note, "id": len(whole["annotations"]) + k, "image_id": ids[note["image_id"]],
                                  "category_id": own[note["category_id"]]} for k, note in enumerate(part["annotations"], 1)]
    for split in ("train", "val"):
        (folder / f"{split}.json").unlink()
    (folder / "annotations.json").write_text(json.dumps(whole))


def cvat(folder):
    "CVAT exports each task's images and one file with a fixed name."
    det("{s}/images", "{s}/annotations/instances_default.json")(folder)


def other_files_beside(folder):
    "Label files of other datasets and other kinds lie beside the right ones."
    det("images/{s}2017", "annotations/instances_{s}2017.json")(folder)
    for split in ("train", "val"):
        own = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
        foreign = {**own, "images": [{**info, "file_name": f"other_{info['file_name']}"} for info in own["images"]]}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(foreign))
        notes = [dict(id=k, image_id=note["image_id"], caption="a thing") for k, note in enumerate(own["annotations"])]
        (folder / f"annotations/captions_{split}2017.json").write_text(json.dumps({**own, "annotations": notes}))
    (folder / "package.json").write_text('{"name": "tool"}')


def windows_names(folder):
    det("images/{s}", "annotations/{s}.json", lambda name, split: f"images\\{split}\\{name}")(folder)


DET = {
    "annotations/mini_instances_S2017.json": det("{s}", "annotations/mini_instances_{s}2017.json"),
    "S/instances_S.json": det("{s}", "{s}/instances_{s}.json"),
    "S/images + S/annotations.json": det("{s}/images", "{s}/annotations.json"),
    "S/annotations/instances_S_mini.json": det("{s}/images", "{s}/annotations/instances_{s}_mini.json"),
    "S/annotations/S.json": det("{s}/images", "{s}/annotations/{s}.json"),
    "images/S + annotations/S.json": det("images/{s}", "annotations/{s}.json"),
    "roboflow": roboflow, "cvat": cvat, "one for all": one_for_all, "other files beside": other_files_beside,
    "windows names": windows_names,
}


def yolo(folder):
    "data.yaml, images/S and labels/S; fractions have ten digits, so that boxes agree to a thousandth of a pixel."
    names = sorted({c["name"] for split in ("train", "val")
                    for c in json.loads((folder / split / "labels.json").read_text())["categories"]})
    for split in ("train", "val"):
        data = json.loads((folder / split / "labels.json").read_text())
        number = {c["id"]: names.index(c["name"]) for c in data["categories"]}
        for info in data["images"]:
            rows = [(number[n["category_id"]], n["bbox"]) for n in data["annotations"]
                    if n["image_id"] == info["id"] and not n["iscrowd"]]
            text = "".join(f"{k} {(x + w / 2) / info['width']:.10f} {(y + h / 2) / info['height']:.10f} {w / info['width']:.10f} "
                           f"{h / info['height']:.10f}\n" for k, (x, y, w, h) in rows)
            label = folder / "labels" / split / f"{info['file_name'].rsplit('.', 1)[0]}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
            move(folder / split / "data" / info["file_name"], folder / "images" / split / info["file_name"])
        shutil.rmtree(folder / split)
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n" + "".join(
        f"  {k}: {name}\n" for k, name in enumerate(names)))


# segmentation: SPLIT/JPEGImages and SPLIT/SegmentationClass

def seg(images, masks, suffix=""):
    def build(folder):
        for split in ("train", "val"):
            for path in sorted((folder / split / "JPEGImages").iterdir()):
                move(path, folder / images.format(s=split) / path.name)
            for path in sorted((folder / split / "SegmentationClass").iterdir()):
                move(path, folder / masks.format(s=split) / f"{path.stem}{suffix}.png")
            for sub in ("JPEGImages", "SegmentationClass"):
                if not list((folder / split / sub).iterdir()):
                    (folder / split / sub).rmdir()
            if not list((folder / split).iterdir()):
                (folder / split).rmdir()
    return build


def flat_voc(lists, top=""):
    "One folder of images, one of masks, and lists that tell the splits; more lists than are needed."
    def build(folder):
        stems = {split: [p.stem for p in (folder / split / "JPEGImages").iterdir()] for split in ("train", "val")}
        seg(f"{top}JPEGImages", f"{top}SegmentationClass")(folder)
        place = folder / f"{top}ImageSets/Segmentation"
        place.mkdir(parents=True)
        for name, words in lists(stems).items():
            (place / f"{name}.txt").write_text("".join(f"{word}\n" for word in words))
    return build


def whole_devkit(folder):
    "VOCdevkit/VOC2012 with the masks of single objects and images of other tasks beside."
    flat_voc(lambda s: {**s, "trainval": s["train"] + s["val"]}, "VOCdevkit/VOC2012/")(folder)
    voc = folder / "VOCdevkit/VOC2012"
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationObject")
    photo = next((voc / "JPEGImages").iterdir())
    shutil.copy(photo, voc / "JPEGImages/2009_unlabelled.jpg")
    (voc / "ImageSets/Main").mkdir()
    (voc / "ImageSets/Main/train.txt").write_text("2009_unlabelled -1\n")


SEG = {
    "S/images + S/masks": seg("{s}/images", "{s}/masks"),
    "S/images + S/annotations": seg("{s}/images", "{s}/annotations"),
    "images/S + masks/S": seg("images/{s}", "masks/{s}"),
    "flat VOC, train and val": flat_voc(lambda s: s),
    "flat VOC, lists of the mini": flat_voc(lambda s: {
        "train20": s["train"], "val20": s["val"], "trainval": s["train"] + s["val"], "train": s["train"] + ["2012_gone"],
        "val": s["val"] + ["2012_gone"]}),
    "VOCdevkit": whole_devkit,
    "side by side": seg("{s}", "{s}"),
    "x_mask.png": seg("{s}", "{s}", "_mask"),
    "x_label.png": seg("{s}/images", "{s}/labels", "_label"),
}


# classification: SPLIT/class/

def nested(folder):
    "Folders inside a class, and files without a suffix."
    for split in ("train", "val"):
        for place in (folder / split).iterdir():
            first = sorted(place.iterdir())[0]
            move(first, place / "more" / "deep" / first.name.split(".")[0])


def class_first(folder):
    for split in ("train", "val"):
        for place in (folder / split).iterdir():
            move(place, folder / place.name / split)
        (folder / split).rmdir()


def table(folder):
    "As Imagenette's own CSV has it: paths, labels, is_valid; the images lie in one folder."
    rows = ["path,noisy_labels_0,noisy_labels_50,is_valid"]
    for split in ("train", "val"):
        for place in sorted((folder / split).iterdir()):
            for path in sorted(place.iterdir()):
                rows.append(f"{split}/{place.name}/{path.name},{place.name},noise,{split == 'val'}")
                move(path, folder / "images" / path.name)
        shutil.rmtree(folder / split)
    (folder / "noisy_imagenette.csv").write_text("\n".join(rows) + "\n")


def table_for_each_split(folder):
    for split in ("train", "val"):
        rows = ["filename;label"]
        for place in sorted((folder / split).iterdir()):
            for path in sorted(place.iterdir()):
                rows.append(f"{path.name};{place.name}")
                move(path, folder / split / path.name)
            place.rmdir()
        (folder / f"{split}.csv").write_text("\n".join(rows))


def its_own_table_beside(folder):
    "Class folders and the CSV that comes with them: the folders are read."
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0,is_valid\ntrain/x/y.JPEG,x,False\n")


CLS = {"nested": nested, "class first": class_first, "table": table, "table for each split": table_for_each_split,
       "its own table beside": its_own_table_beside}
BUILDERS = [("det", name, build) for name, build in DET.items()] + [("seg", name, build) for name, build in SEG.items()] + [
    ("cls", name, build) for name, build in CLS.items()]
FOLDERS = {"det": "mini_coco_det", "seg": "mini_voc_seg", "cls": "imagenette_160"}


@pytest.fixture(scope="session")
def expected(pristine):
    read = read_minis(pristine)
    return {task: facts(read, task) for task in TASKS}


@pytest.mark.parametrize("task,name,build", BUILDERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_layout_gives_the_same_records(minis, expected, task, name, build):
    build(minis / FOLDERS[task])
    assert facts(read_minis(minis), task) == expected[task]
    report = check_minis(minis)
    assert report.ok, report.problems
    assert report.text().split("\n")[1] == "read as:"
    assert len(report.reading) == 10, "a line for each set and each split, and one for the names of the masks' classes"


@pytest.mark.parametrize("task,name,build", BUILDERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_layout_below_other_names(minis, tmp_path, expected, task, name, build):
    "An archive's own top folder, and names that are not the assignment's."
    build(minis / FOLDERS[task])
    (minis / FOLDERS[task]).rename(minis / f"my {task} set")
    top = tmp_path / "unpacked" / "minis-main"
    move(minis, top)
    assert facts(read_minis(top.parent), task) == expected[task]


def test_yolo(minis, expected):
    yolo(minis / "mini_coco_det")
    read = facts(read_minis(minis), "det")
    for split, rows in expected["det"].items():
        for (name, boxes, labels, crowds, *_), (name2, boxes2, labels2, _, *_) in zip(rows, read[split]):
            assert name == name2
            if not crowds:  # YOLO has none
                assert labels == labels2 and boxes == sorted(tuple(round(v, 3) for v in box) for box in boxes2)


@pytest.mark.parametrize("train,val", [(a, b) for a in NAMED["train"] for b in (*NAMED["val"], "valid", "Val")])
def test_names_of_splits(minis, expected, train, val):
    det("images/{s}", "annotations/instances_{s}.json")(minis / "mini_coco_det")
    for old, new in (("train", train), ("val", val)):
        (minis / "mini_coco_det/images" / old).rename(minis / "mini_coco_det/images" / new)
        for task in ("seg", "cls"):
            (minis / FOLDERS[task] / old).rename(minis / FOLDERS[task] / f"_{new}")  # by way of a third name, for disks
            (minis / FOLDERS[task] / f"_{new}").rename(minis / FOLDERS[task] / new)
    read = read_minis(minis)
    assert all(facts(read, task) == expected[task] for task in TASKS)


@pytest.mark.parametrize("names", [("mini-coco-det", "mini-voc-seg", "imagenette-160"),
                                   ("Mini_COCO_det", "miniVOCseg", "imagenette2-160"), ("coco", "voc2012", "imagenette160")])
def test_names_of_datasets(minis, expected, names):
    for task, name in zip(("det", "seg", "cls"), names):
        (minis / FOLDERS[task]).rename(minis / f"{name}_")
        (minis / f"{name}_").rename(minis / name)
    read = read_minis(minis)
    assert all(facts(read, task) == expected[task] for task in TASKS)


def test_wordnet_numbers_and_names(minis):
    for split in ("train", "val"):
        (minis / "imagenette_160" / split / "plain_red").rename(minis / "imagenette_160" / split / (
            "n02102040" if split == "train" else "English_springer"))
    names = read_minis(minis).classes["cls"]
    assert names.count("English springer") == 1 and "English_springer" not in names


def test_names_of_roboflows_masks(minis):
    "Its export of masks: x_mask.png beside x.jpg, and a table of pixel values in each split."
    seg("{s}", "{s}", "_mask")(minis / "mini_voc_seg")
    (minis / "mini_voc_seg/classes.txt").unlink()
    names = [f"thing {k}" for k in range(1, 21)]
    for split in ("train", "val"):
        (minis / "mini_voc_seg" / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n" + "".join(
            f"{k}, {name}\n" for k, name in enumerate(names, 1)))
    assert read_minis(minis).classes["seg"] == ["background", *names]
    (minis / "mini_voc_seg/val/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, another\n")
    with pytest.raises(InputError, match="_classes.csv: differs from"):
        read_minis(minis)


def test_colours_of_a_labelmap_in_another_order(minis):
    "A colour mask is read by VOC's colours, so a list that gives them to other classes is refused."
    rows = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::"]
    place = minis / "mini_voc_seg"
    (place / "classes.txt").unlink()
    (place / "labelmap.txt").write_text("\n".join(rows))
    assert read_minis(minis, tasks=("seg",)).classes["seg"] == ["background", "cat", "dog"]
    for swapped in ([*rows[:2], "cat:0,128,0::", "dog:128,0,0::"], [*rows[:2], "dog:0,0,128::", rows[2]]):
        (place / "labelmap.txt").write_text("\n".join(swapped))
        with pytest.raises(InputError, match="labelmap.txt: gives '.*', number ., the colour that VOC gives to"):
            read_minis(minis, tasks=("seg",))


def test_boxes_that_do_not_lie_round_their_polygons(minis):
    path = minis / "mini_coco_det/train/labels.json"
    data = json.loads(path.read_text())
    for note in data["annotations"]:
        x, y, w, h = note["bbox"]
        note["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(data))
    read_minis(minis, tasks=("det",))
    for change in (lambda b: [b[0] * .8, b[1] * .8, b[2] * .8, b[3] * .8], lambda b: [b[0] + 8, b[1] + 8, *b[2:]],
                   lambda b: [b[0], 48 - b[1] - b[3], *b[2:]]):
        changed = {**data, "annotations": [{**note, "bbox": change(note["bbox"])} for note in data["annotations"]]}
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="labels.json: not usable as COCO labels: .*polygons"):
            read_minis(minis, tasks=("det",))


def test_two_that_fit_are_a_question(minis, capsys):
    det("images/{s}", "annotations/{s}.json")(minis / "mini_coco_det")
    data = json.loads((minis / "mini_coco_det/annotations/val.json").read_text())
    data["annotations"].pop()
    (minis / "mini_coco_det/annotations/val_new.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="2 label files fit the val split .*layout=det_labels="):
        read_minis(minis)
    chosen = ("det_labels=annotations/val_new.json",)  # a word settles one split and leaves the other
    read = read_minis(minis, layout=chosen).records["det"]
    assert sum(len(r.boxes) for r in read["val"]) == len(data["annotations"]) and len(read["train"]) == 20
    with pytest.raises(InputError, match="nothing there ends with gone.json. Correct layout=det_labels=gone.json"):
        read_minis(minis, layout=("det_labels=gone.json",))
    assert cli.main(["data", "check", "--data-root", str(minis)]) == 1
    assert cli.main(["data", "check", "--data-root", str(minis), "--layout", *chosen]) == 0
    capsys.readouterr()
    assert cli.main(["data", "check", "--data-root", str(minis), "--layout", "nonsense"]) == 2
    assert "layout=nonsense: not of the form" in capsys.readouterr().err


def test_a_set_without_val_through_a_run(minis, tmp_path, capsys):
    for task in TASKS:
        shutil.rmtree(minis / FOLDERS[task] / "val")
    assert cli.main(["run", "--data-root", str(minis), "--preset", "smoke"]) == 2
    assert "set val_split=0.2" in capsys.readouterr().err
    out = tmp_path / "run"
    command = ["run", "--data-root", str(minis), "--preset", "smoke", "--out", str(out), "--device", "cpu"]
    assert cli.main([*command, "val_split=0.4"]) == 0
    assert "val is your own split (val_split=0.4)" in capsys.readouterr().out
    report = (out / "report.md").read_text()
    assert "segmentation: val is your own split (val_split=0.4)" in report.split("## Architecture")[0]
    assert "your own split" in report.split("## Every rule")[1]


def test_classes_left_out_are_named_by_run(minis, tmp_path, capsys):
    for split in ("train", "val"):
        path = minis / "mini_coco_det" / split / "labels.json"
        data = json.loads(path.read_text())
        more = [dict(id=900 + k, name=f"extra {k}") for k in range(2)]
        data["categories"] += more
        data["annotations"] += [dict(id=9000 + k, image_id=data["images"][k]["id"], category_id=900 + k, bbox=[1, 1, 9, 9],
                                     area=81, iscrowd=0) for k in range(2)]
        path.write_text(json.dumps(data))
    out = ["--preset", "smoke", "--device", "cpu"]
    assert cli.main(["run", "--data-root", str(minis), *out, "--out", str(tmp_path / "ten")]) == 0
    assert "2 more categories are not trained: extra 0, extra 1" in capsys.readouterr().out
    assert len(read_minis(minis, det_classes=("all",)).classes["det"]) == 12
