"""Label files and lists of names as other tools write them: each is read right or refused with its entry. Pages 05 to 07 of
`data` hold the finer tests."""
import copy
import json
import random

import numpy as np
import pytest
from PIL import Image

from unified_onehead.core.files import InputError
from unified_onehead.data.box_format import FileBoxes, foreign_format
from unified_onehead.data.classes import seg_names, seg_reading
from unified_onehead.data.coco import coco_kind, file_names, in_folder, looks_like_coco, read_coco, why_no_class
from unified_onehead.data.text import read_json
from unified_onehead.data.yolo import read_yolo, yolo_names

SIZES = ((64, 48), (40, 60), (50, 50))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k in range(30):
        Image.new("RGB", SIZES[k % 3]).save(folder / f"{k:02}.jpg")
    return folder


def labels(seed=0, boxes=90):
    "A right label file: boxes of two classes, with areas; some touch the edges."
    rng, images, notes = np.random.default_rng(seed), [], []
    for k in range(30):
        width, height = SIZES[k % 3]
        images.append(dict(id=k + 1, file_name=f"{k:02}.jpg", width=width, height=height))
    for k in range(boxes):
        size = np.array(SIZES[(k % 30) % 3], float)
        wh = rng.uniform(0.1, 0.8, 2) * size
        x, y = (rng.integers(0, 2, 2) if k % 4 == 0 else rng.uniform(0, 1, 2)) * (size - wh)
        notes.append(dict(id=k + 1, image_id=k % 30 + 1, category_id=10 + 7 * (k % 2), iscrowd=0, area=float(wh.prod()),
                          bbox=[float(x), float(y), float(wh[0]), float(wh[1])]))
    return dict(images=images, annotations=notes, categories=[dict(id=10, name="nut"), dict(id=17, name="bolt")])


def read(place, tmp_path, change=lambda d: None, encoding="utf-8", **more):
    data = labels()
    change(data)
    (tmp_path / "labels.json").write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
    return read_coco(tmp_path / "labels.json", in_folder(place), folder=place, **more)


def facts(found):
    return [(r.path, r.image_id, r.size, r.boxes, r.crowd, names) for r, names in found[0]]


def refused(place, tmp_path, change, words, **more):
    with pytest.raises(InputError) as error:
        read(place, tmp_path, change, **more)
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    return str(error.value)


def boxes_as(form, area=True, only=lambda k: True):
    def change(data):
        sizes = {info["id"]: (info["width"], info["height"]) for info in data["images"]}
        for k, note in enumerate(data["annotations"]):
            if only(k):
                note["bbox"] = [float(v) for v in form(*note["bbox"], *sizes[note["image_id"]])]
            if not area:
                del note["area"]
    return change


FORMS = {
    "corners x1, y1, x2, y2 in pixels": lambda x, y, w, h, W, H: (x, y, x + w, y + h),
    "centre x, centre y, width, height in pixels": lambda x, y, w, h, W, H: (x + w / 2, y + h / 2, w, h),
    "x, y, width, height in fractions": lambda x, y, w, h, W, H: (x / W, y / H, w / W, h / H),
    "corners x1, y1, x2, y2 in fractions": lambda x, y, w, h, W, H: (x / W, y / H, (x + w) / W, (y + h) / H),
    "centre x, centre y, width, height in fractions": lambda x, y, w, h, W, H: ((x + w / 2) / W, (y + h / 2) / H, w / W, h / H),
    "corners with y first": lambda x, y, w, h, W, H: (y, x, y + h, x + w),
    "y, x, height, width": lambda x, y, w, h, W, H: (y, x, h, w),
    "boxes for pictures of another size": lambda x, y, w, h, W, H: (x * 2, y * 2, w * 2, h * 2),
}


@pytest.mark.parametrize("area", (True, False))
@pytest.mark.parametrize("words", FORMS)
def test_boxes_of_another_format_are_named(place, tmp_path, words, area):
    said = refused(place, tmp_path, boxes_as(FORMS[words], area), f"the boxes look like {words}")
    assert "labels.json" in said and "annotation" in said and "bbox [" in said and ".jpg" in said


def test_exchanged_sizes_are_named(place, tmp_path):
    def change(data):
        for info in data["images"]:
            info.update(width=info["height"], height=info["width"])
    refused(place, tmp_path, change, "width and height are not those of the pictures")


def test_half_a_file_of_corners_is_found_by_polygons(place, tmp_path):
    def change(data):
        for note in data["annotations"]:
            x, y, w, h = note["bbox"]
            note["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        boxes_as(FORMS["corners x1, y1, x2, y2 in pixels"], only=lambda k: k % 2)(data)
    refused(place, tmp_path, change, "lie round their polygons only when read so")


def test_a_few_wrong_boxes_are_clipped_and_told(place, tmp_path):
    def change(data):
        for note in data["annotations"][:3]:
            note["bbox"] = [5, 5, 300, 300]
    said = "labels.json: 3 boxes reach over the edge of their image and were clipped"
    assert read(place, tmp_path, change)[1] == [f"{tmp_path.name}/{said}"]


@pytest.mark.parametrize("seed", range(40))
def test_right_files_are_read_whatever_their_boxes(seed):
    "Whole boxes inside their images: few and many, small and large, with and without areas and polygons."
    rng = np.random.default_rng(seed)
    for n in (1, 2, 3, 5, 9, 10, 30, 200):
        sizes = rng.integers(8, 3000, (n, 2)).astype(float) if seed % 2 else np.tile(rng.integers(8, 3000, 2).astype(float),
        (n, 1))
        wh = np.maximum(1, rng.uniform(0, rng.choice((0.05, 0.3, 1)), (n, 2)) * sizes)
        xy = rng.beta(*rng.choice((0.3, 1, 3), 2), (n, 2)) * (sizes - wh)
        if seed % 3 == 0:
            xy, wh = xy.round(), wh.round()
        for share in (np.nan, rng.uniform(0.3, 0.8), 1.0):
            for outlines in (np.concatenate([xy, xy + wh], 1), np.full((n, 4), np.nan)):
                found = foreign_format(FileBoxes(np.concatenate([xy, wh], 1), sizes, share * wh.prod(1), outlines))
                assert found is None, (n, share, found)


def one(kind, **values):
    return lambda data: data[kind][0].update(values)


def again(kind, **values):
    return lambda data: data[kind].append({**data[kind][0], **values})


@pytest.mark.parametrize("change, words", [
    (again("images", id=99), "one image file stands under two ids, 1 (00.jpg) and 99 (00.jpg)"),
    (again("images", id=99, file_name=".\\00.jpg"), "one image file stands under two ids"),
    (again("images", id=99, file_name="other/00.jpg"), "one image file stands under two ids"),
    (one("images", id="2"), "image id 2 stands twice, as '2' (00.jpg) and 2 (01.jpg)"),
    (one("images", id=2.0), "image id 2 stands twice, as 2.0"),
    (one("images", id=1.1), "id: the id 1.1 is no whole number"), (one("annotations", image_id=1.2), "the id 1.2 is no whole"),
    (one("images", id=True), "the id True"), (one("images", id=None), "the id None"), (one("images", id=""), "the id ''"),
    (one("images", width=0), "width 0 is no number of pixels"), (one("images", height=-3), "height -3 is no number"),
    (one("images", width=float("nan")), "width nan is no number"), (one("images", file_name=None), "file_name None is no name"),
    (again("categories", name="screw"), "the category id 10 has two names, 'nut' and 'screw'"),
    (again("categories", id="10", name="screw"), "has two names"), (one("categories", id=17), "has two names"),
    (one("categories", name=None), "have no name (the ids 10)"), (one("categories", name=" "), "layout=det_names=10:NAME"),
    (one("categories", id=10.5), "id: the id 10.5"), (one("annotations", category_id=None), "annotation 1: category_id"),
    (one("annotations", category_id=5), "category_id 5 leads nowhere"),
    (one("annotations", image_id="x"), "image_id 'x' leads nowhere"),
    (one("annotations", iscrowd="perhaps"), "iscrowd 'perhaps' is neither"),
    (one("annotations", iscrowd=2), "iscrowd 2 is neither"),
    (one("annotations", bbox=[1, 2, None, 4]), "is not four numbers"),
    (one("annotations", bbox="1 2 3 4"), "is not four numbers"),
    (lambda d: d.pop("annotations"), "no list of annotations"), (lambda d: d.update(images={}), "no list of images"),
])
def test_entries_that_leave_doubt_are_refused(place, tmp_path, change, words):
    assert "labels.json" in refused(place, tmp_path, change, words)


def texts(data):
    for info in data["images"]:
        info.update(id=str(info["id"]), width=str(info["width"]), file_name="train\\" + info["file_name"])
    for note in data["annotations"]:
        note.update(image_id=float(note["image_id"]), category_id=str(note["category_id"]), iscrowd="0")


def twice(data):
    data["annotations"] += [{**note, "id": note["id"] + 500} for note in data["annotations"]]


@pytest.mark.parametrize("change", (texts, twice, lambda d: d["categories"].append(dict(d["categories"][0])),
                                    lambda d: d["categories"].append(dict(id=3, name=None)),
                                    lambda d: [note.update(id=1) for note in d["annotations"]],
                                    lambda d: [note.pop("area") for note in d["annotations"]],
                                    lambda d: [info.update(width=None) for info in d["images"]]))
@pytest.mark.parametrize("encoding", ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"))
def test_the_same_labels_written_otherwise(place, tmp_path, change, encoding):
    assert facts(read(place, tmp_path, change, encoding)) == facts(read(place, tmp_path))


def test_ids_as_text_are_read_and_counted(place, tmp_path):
    def change(data):
        for info in data["images"]:
            info["id"] = f"abc_{info['id']:02}"
        for note in data["annotations"]:
            note["image_id"] = f"abc_{note['image_id']:02}"
    assert facts(read(place, tmp_path, change)) == facts(read(place, tmp_path))


@pytest.mark.parametrize("value, crowd", (("0", False), ("1", True), (True, True), (None, False), ("false", False), (1.0, True)))
def test_iscrowd_says_what_it_says(place, tmp_path, value, crowd):
    assert read(place, tmp_path, one("annotations", iscrowd=value))[0][0][0].crowd[0] is crowd


def test_names_of_ids(place, tmp_path):
    plain = [names for _, names in read(place, tmp_path)[0]]
    found = read(place, tmp_path, lambda d: d.pop("categories"), ids={"10": "nut", 17: "bolt"})
    assert [names for _, names in found[0]] == plain
    refused(place, tmp_path, lambda d: d.pop("categories"), "2 of 2 categories that boxes use have no name (the ids 10, 17). Say")

    def official(data):
        data["categories"] = []
        for note in data["annotations"]:
            note["category_id"] = {10: 1, 17: 90}[note["category_id"]]
    found = read(place, tmp_path, official)
    assert {name for _, names in found[0] for name in names} == {"person", "toothbrush"} and "COCO's names" in found[1][0]
    one_class = read(place, tmp_path, lambda d: d["categories"][1].update(name="nut "))
    assert {name for _, names in one_class[0] for name in names} == {"nut"} and "read as one class" in one_class[1][0]


def test_all_crowds_and_no_box_are_called_so(place, tmp_path):
    crowds = read(place, tmp_path, lambda d: [note.update(iscrowd=1) for note in d["annotations"]])[0]
    nothing = read(place, tmp_path, lambda d: d.update(annotations=[]))[0]
    assert why_no_class({"train": crowds}).startswith("all 90 boxes of train are crowds (iscrowd is 1): regions with many")
    assert why_no_class({"train": nothing, "val": crowds}).startswith("the label file of train holds no box; all 90 boxes of val")
    assert "train has boxes of bolt, nut" in why_no_class({"train": read(place, tmp_path)[0]})


def test_kinds_of_label_files(tmp_path):
    data = labels()
    assert looks_like_coco(data) and looks_like_coco({**data, "annotations": []}) and file_names(data)[0] == "00.jpg"
    other = {"captions": {"caption": "a nut"}, "panoptic": {"segments_info": []}, "keypoints": {"keypoints": [1, 2, 2],
    "bbox": []}}
    for kind, note in other.items():
        assert coco_kind({**data, "annotations": [{"image_id": 1, **note}]}) == kind
    assert coco_kind({"images": data["images"]}) == "images" and coco_kind([1]) == coco_kind({"a": 1}) == ""


@pytest.mark.parametrize("raw, words", [
    (b"", "the file is empty"), (b'{"a": 1', "may be cut off"), (b'{"a": 1, "a": 2}', "'a' stands twice"), (b"\xff\xfe{",
    "UTF-16"),
    ('{"name": "狗貓車"}'.encode("big5"), "is not UTF-8"), (b"PK\x03\x04", "zip"), (b"<!DOCTYPE html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"[" * 50_000, "not readable as JSON"),
])
def test_files_that_are_no_json_say_what_they_are(tmp_path, raw, words):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(InputError, match="a.json") as error:
        read_json(tmp_path / "a.json")
    assert words in str(error.value)


def test_mutated_label_files_end_in_a_message_or_a_reading(place, tmp_path):
    "Any value of a label file replaced by another: never a traceback; what is read has boxes inside and a name for each."
    rng, values = random.Random(0), (None, "", "x", -1, 0, 1.5, 10 ** 400, True, [], {}, [1],
                                    "1", float("nan"), float("inf"), "a\0b")
    whole, read_right = labels(boxes=12), 0
    for _ in range(400):
        data = copy.deepcopy(whole)
        for _ in range(rng.choice((1, 1, 2, 4))):
            target = rng.choice((data, *(rng.choice(data[key]) for key in data if isinstance(data[key], list) and data[key])))
            if isinstance(target, dict) and target:
                key = rng.choice(list(target))
                value = rng.choice(values)
                target.pop(key) if rng.random() < 0.2 else target.update({key: value})
        (tmp_path / "labels.json").write_text(json.dumps(data))
        try:
            pairs, _ = read_coco(tmp_path / "labels.json", in_folder(place), folder=place)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 900, error
            continue
        read_right += 1
        for record, names in pairs:
            assert len(names) == len(record.boxes) == len(record.crowd) and all(names)
            assert all(0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64 for x1, y1, x2, y2 in record.boxes)
    assert 50 < read_right < 350


LISTS = {  # what the file says: the names by number, or words of the refusal
    "__ignore__\ncat\ndog": ["background", "cat", "dog"], "bg\ncat\ndog": ["background", "cat", "dog"],
    "void\ncat\ndog": ["background", "cat", "dog"], "unlabeled\ncat\ndog": ["background", "cat", "dog"],
    "0 background\n1 cat\n2 dog": ["background", "cat", "dog"], "__ignore__\n_background_\ncat": ["background", "cat"],
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::": ["background", "cat"], "cat\ndog": ["background",
    "cat", "dog"],
    "2,dog\n1,cat\n0,bg": ["background", "cat", "dog"], "other\ncat": "may stand for the background",
    "0 cat\n1 dog": "gives 0, the background",
    "1 cat\n3 dog": "the numbers 2 have no name", "cat\n\ndog\nbird": "line 2 between the names is empty",
    "cat\ncat": "stands twice",
    "cat\ndog\nbackground": "the background stands in place 2", "cat,dog,bird": "one line with several names",
    "": "holds no name",
}


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("encoding", ("utf-8", "utf-8-sig", "utf-16", "cp1252"))
def test_lists_of_names(tmp_path, text, encoding):
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    if isinstance(LISTS[text], list):
        assert seg_names(tmp_path) == LISTS[text]
    else:
        with pytest.raises(InputError, match="classes.txt") as error:
            seg_names(tmp_path)
        assert LISTS[text] in str(error.value)


@pytest.mark.parametrize("pixels, reading, names", [
    ({0: 9, 1: 5, 3: 2}, "", ["background", "road", "sky", "tree"]), ({0: 9, 1: 5, 2: 2}, "", None),
    ({0: 9, 1: 5}, "", ["background", "road"]),
    ({0: 9, 1: 5, 2: 2}, "with_background", ["road", "sky", "tree"]), ({0: 9, 1: 5, 2: 2}, "without_background", ["background",
    "road"]),
])
def test_masks_settle_how_a_list_begins(tmp_path, pixels, reading, names):
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    if names:
        assert seg_reading(tmp_path, lambda: pixels, reading)[:len(names)] == names
        return
    with pytest.raises(InputError, match=r"0 road \(9 pixels\).*1 road \(5 pixels\).*layout=seg_classes=with_background"):
        seg_reading(tmp_path, lambda: pixels, reading)


def beside(path):
    label = path.with_suffix(".txt")
    return label if label.is_file() else None


@pytest.mark.parametrize("line, words", [
    ("0 .5 .5 .2 .2 .9", "end in a confidence"), ("2 .5 .5 .2 .2", "the class 2 is none of the 2"), ("0.5 .5 .5 .2 .2",
    "the class 0.5"),
    ("-1 .5 .5 .2 .2", "the class -1"), ("nut .5 .5 .2 .2", "is not numbers"), ("0 320 240 64 48", "is no fraction of the image"),
    ("0 .5 .5 .2", "4 values are no box"), ("0 .5 .5 nan .2", "the value nan"), ("0,.5,.5,.2,.2", "is not numbers"),
])
def test_yolo_lines_that_are_no_labels(tmp_path, line, words):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text(f"1 .5 .5 .2 .2\n{line}\n")
    with pytest.raises(InputError, match=r"a\.txt, line 2") as error:
        read_yolo([tmp_path / "a.jpg"], ["nut", "bolt"], beside)
    assert words in str(error.value)


def test_yolo_reads_what_coco_reads(place, tmp_path):
    "The same boxes in both formats, the names in data.yaml."
    data, lines = labels(), {}
    for note in data["annotations"]:
        info, (x, y, w, h) = data["images"][note["image_id"] - 1], note["bbox"]
        W, H = info["width"], info["height"]
        number = {10: 0, 17: 1}[note["category_id"]]
        lines.setdefault(info["file_name"], []).append(f"{number} {(x + w / 2) / W!r} {(y + h / 2) / H!r} {w / W!r} {h / H!r}\n")
    for name, found in lines.items():
        (tmp_path / name).with_suffix(".txt").write_bytes(b"\xef\xbb\xbf" + "".join(found + found[:1]).encode())
    (tmp_path / "data.yaml").write_text("train: images/train\nnames:\n  0: nut\n  1: bolt\nnc: 2\n")
    names = yolo_names(tmp_path / "data.yaml")["names"]
    files = sorted(place.glob("*.jpg"))
    pairs, notes = read_yolo(files, names, lambda path: beside(tmp_path / path.name))
    assert len(notes) == 1 and "boxes stand twice and were taken once" in notes[0]
    for (mine, called), (theirs, expected) in zip(pairs, read(place, tmp_path)[0]):
        assert called == expected and mine.size == theirs.size and np.allclose(mine.boxes, theirs.boxes, atol=1e-9)
