"""Properties of the readers, tried on generated files: what is right is read exactly, anything else is refused in words."""
import json
import shutil
import tempfile
import unicodedata
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from unified_onehead.core.files import InputError, one_line
from unified_onehead.core.images import read_image, read_mask
from unified_onehead.data.classes import seg_names
from unified_onehead.data.coco import read_coco
from unified_onehead.data.labels import LAYOUT_KEYS, read_layout
from unified_onehead.data.sources import read_minis, split_off
from unified_onehead.data.text import read_json
from unified_onehead.data.tree import SPELLINGS, file_split, folder_split, path_split


def examples(number):
    "The same examples on every machine."
    return settings(derandomize=True, deadline=None, max_examples=number, database=None, phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Files of known sizes, to be linked: width, height -> path."
    place, rng, found = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), {}
    for size in ((64, 48), (40, 80), (50, 50)):
        found[size] = place / f"{size[0]}.jpg"
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(found[size])
    return found


# COCO files

letters = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co", "Zl", "Zp", "Zs"), exclude_characters="/\\:*?\"<>|.\u200b")
words = st.text(letters, min_size=1, max_size=8)
plain = lambda text: " ".join(unicodedata.normalize("NFC", text).split())  # noqa: E731
ids = st.one_of(st.integers(0, 2 ** 62), words.filter(lambda w: not w.strip().isdigit()))


def loose(name):
    "A name with nothing but its letters, so that two names are told apart by any system of files."
    return unicodedata.normalize("NFKC", name).casefold()


@st.composite
def coco(draw, boxes=(0, 4), images=(1, 4)):
    "A right label file, and what it says: file name -> list of (class, box, crowd)."
    names = draw(st.lists(words, min_size=1, max_size=4, unique_by=loose))
    keys = draw(st.lists(ids, min_size=len(names), max_size=len(names), unique_by=lambda k: str(k).strip()))
    files = draw(st.lists(words, min_size=images[0], max_size=images[1], unique_by=loose))
    image_ids = draw(st.lists(ids, min_size=len(files), max_size=len(files), unique_by=lambda k: str(k).strip()))
    form, number = draw(st.sampled_from(["NFC", "NFD"])), draw(st.sampled_from([int, float, str]))
    data = dict(images=[], annotations=[], categories=[dict(id=k, name=n) for k, n in zip(keys, names)])
    said, sizes = {}, {}
    for key, name in zip(image_ids, files):
        file = unicodedata.normalize("NFC", name) + ".jpg"
        width, height = sizes[file] = draw(st.sampled_from([(64, 48), (40, 80), (50, 50)]))
        data["images"].append({"id": key, "file_name": unicodedata.normalize(form, file), "width": number(width),
                               "height": number(height)})
        said[file] = set()
        for _ in range(draw(st.integers(*boxes))):
            x, y = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
            w, h = draw(st.integers(1, width - x)), draw(st.integers(1, height - y))
            which, crowd = draw(st.integers(0, len(names) - 1)), draw(st.sampled_from([0, 1, False, "0", None]))
            data["annotations"].append({"id": len(data["annotations"]), "image_id": key, "category_id": keys[which],
                                        "bbox": [number(v) for v in (x, y, w, h)], "iscrowd": crowd, "area": w * h})
            said[file].add((plain(names[which]), (x, y, x + w, y + h), crowd == 1))
    data["licenses"] = draw(st.sampled_from([[], [{"id": 1}], None, "free"]))
    for kind in ("images", "annotations", "categories"):
        data[kind] = draw(st.permutations(data[kind]))
    return data, said, sizes


def link_pictures(place, sizes, pictures):
    for file, size in sizes.items():
        (place / file).symlink_to(pictures[size])
    return lambda name: place / name if name in sizes else None


def read_boxes(path, find):
    pairs, _ = read_coco(path, find)
    return {Path(r.path).name: {(name, tuple(map(int, box)), crowd) for name, box, crowd in zip(names, r.boxes, r.crowd)}
            for r, names in pairs}


@examples(60)
@given(coco(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "ascii"]))
def test_a_right_file_is_read_to_what_was_put_in(pictures, made, encoding):
    data, said, sizes = made
    with folder() as place:
        text = json.dumps(data, ensure_ascii=encoding == "ascii")
        (place / "labels.json").write_bytes(text.encode(encoding))
        assert read_boxes(place / "labels.json", link_pictures(place, sizes, pictures)) == said


FORMATS = {
    "xyxy": lambda x, y, w, h, W, H: (x, y, x + w, y + h), "yxyx": lambda x, y, w, h, W, H: (y, x, y + h, x + w),
    "cxcywh": lambda x, y, w, h, W, H: (x + w / 2, y + h / 2, w, h),
    "fractions": lambda x, y, w, h, W, H: (x / W, y / H, w / W, h / H),
    "per cent": lambda x, y, w, h, W, H: (100 * x / W, 100 * y / H, 100 * w / W, 100 * h / H)}


@examples(30)
@given(coco(boxes=(4, 6), images=(4, 6)), st.sampled_from(sorted(FORMATS)), st.booleans())
def test_a_file_in_another_format_is_not_read_as_if_it_were_right(pictures, made, name, outlined):
    "With polygons or areas beside the boxes, and many boxes, every other format shows."
    data, said, sizes = made
    size_of = {info["id"]: sizes[unicodedata.normalize("NFC", info["file_name"])] for info in data["images"]}
    for note in data["annotations"]:
        (x, y, w, h), note["iscrowd"] = (float(v) for v in note["bbox"]), 0
        note["bbox"] = list(FORMATS[name](x, y, w, h, *size_of[note["image_id"]]))
        if outlined:
            note["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assume(outlined or name not in ("cxcywh", "yxyx"))  # whose areas are those of COCO's boxes, or of another box
    with folder() as place:
        (place / "labels.json").write_text(json.dumps(data))
        find = link_pictures(place, sizes, pictures)
        with pytest.raises(InputError, match="the boxes look like"):
            read_coco(place / "labels.json", find)


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                           max_leaves=4)


@examples(80)
@given(coco(boxes=(1, 3)), st.data())
def test_any_value_anywhere_is_refused_in_words_or_changes_its_own_entry_alone(pictures, made, data):
    labels, said, sizes = made
    kind = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = data.draw(st.sampled_from(labels[kind]))
    key = data.draw(st.sampled_from(sorted(entry)))
    own = next((i["file_name"] for i in labels["images"] if i["id"] == entry.get("image_id")), entry.get("file_name"))
    entry[key] = data.draw(json_values)
    with folder() as place:
        (place / "labels.json").write_text(json.dumps(labels))
        try:
            found = read_boxes(place / "labels.json", link_pictures(place, sizes, pictures))
        except InputError as error:
            assert "\n" not in str(error) and str(place) in str(error) and len(str(error)) < 1500
            return
    others = set(said) - {unicodedata.normalize("NFC", own)} if own else set()
    assert all(found[file] == said[file] for file in others), "the other images keep their boxes"
    if kind == "categories":
        strip = lambda rows: {file: {row[1:] for row in those} for file, those in rows.items()}  # noqa: E731
        assert strip(found) == strip(said), "another name moves no box"


# masks

@examples(80)
@given(st.integers(1, 40), st.sampled_from(["L", "P", "1", "I;16", "RGB"]), st.data())
def test_masks_of_any_ids_and_mode_are_read_to_the_same_ids(classes, mode, data):
    values = st.sampled_from([0, 1] if mode == "1" else [*range(classes), 255])
    height, width = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    drawn = data.draw(st.lists(values, min_size=height * width, max_size=height * width))
    ids = np.array(drawn, np.uint8).reshape(height, width)
    with folder() as place:
        path = place / "mask.png"
        if mode == "P":
            image = Image.new("P", (width, height))
            image.putpalette(bytes(np.random.default_rng(classes).integers(1, 255, 768, dtype=np.uint8)))
            image.putdata(ids.ravel().tolist())
        else:
            image = Image.fromarray({"1": ids.astype(bool), "I;16": ids.astype(np.uint16)}.get(mode, ids))
        (image.convert("RGB") if mode == "RGB" else image).save(path)
        try:
            read = read_mask(str(path)).numpy()
        except InputError as error:
            assert mode in ("1", "P") and "\n" not in str(error), error  # one bit, or a palette that speaks against its indices
            return
        assert (read == ids).all()


# folders

@pytest.fixture(scope="module")
def bricks(tmp_path_factory):
    "A photograph of each split and class, and a mask of one object."
    place, rng, found = tmp_path_factory.mktemp("bricks"), np.random.default_rng(1), {}
    for split in ("train", "val"):
        for k in range(4):
            found[split, k] = place / f"{split}_{k}.jpg"
            Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((32, 24)).save(found[split, k])
    found["mask"] = place / "mask.png"
    Image.fromarray(np.eye(24, 32, dtype=np.uint8)).save(found["mask"])
    return found


WORDS_OF = {split: sorted({*words, *(w.title() for w in words), *(f"{w}2017" for w in words), *(f"mini_{w}" for w in words),
                           f"{split}-160", f"{split}_images"}) for split, words in SPELLINGS.items()}
tops = st.sampled_from([(), ("top",), ("set",), ("data",), ("My Drive", "minis"), ("images",), ("wild",), ("a-b c",)])
class_names = st.lists(words.filter(lambda w: not folder_split(w)), min_size=2, max_size=2, unique_by=loose)


def put(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def judge(root, task, truth):
    "The same images in the same split and class, or words; never others."
    try:
        minis = read_minis(root, tasks=(task,))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return None
    names = minis.classes[task]
    found = {Path(r.path).name: (split, names[r.category] if task == "cls" else "")
             for split, records in minis.records[task].items() for r in records}
    assert all(truth[name] == place for name, place in found.items()), (found, truth)
    assert len(found) == len(truth) or minis.notes, "images are missing in silence"
    return found


@examples(25)
@given(st.sampled_from(WORDS_OF["train"]), st.sampled_from(WORDS_OF["val"]), tops, class_names, st.booleans(),
       st.sampled_from([(), ("images",), ("x",)]))
def test_folders_of_classes_in_any_arrangement(bricks, train, val, top, names, class_first, inner):
    assume(train.casefold() != val.casefold())
    names = [unicodedata.normalize("NFC", name) for name in names]
    with folder() as root:
        truth = {}
        for split, word in (("train", train), ("val", val)):
            for k in range(4):
                path = (names[k % 2], word) if class_first else (word, *inner, names[k % 2])
                truth[f"{split}_{k}.jpg"] = split, names[k % 2]
                put(bricks[split, k], root.joinpath(*top, *path, f"{split}_{k}.jpg"))
        found = judge(root, "cls", truth)
        assert found or inner, "the plain arrangements are read"


@examples(25)
@given(st.sampled_from(WORDS_OF["train"]), st.sampled_from(WORDS_OF["val"]), tops,
       st.sampled_from(["images", "img", "JPEGImages", "x"]),
       st.sampled_from(["masks", "annotations", "labels", "SegmentationClass", "y"]),
       st.sampled_from(["split first", "split last", "beside"]), st.sampled_from(["", "_mask", "_label"]))
def test_images_and_masks_in_any_arrangement(bricks, train, val, top, images, masks, order, suffix):
    with folder() as root:
        truth = {}
        for split, word in (("train", train), ("val", val)):
            for k in range(4):
                truth[f"{split}_{k}.jpg"] = split, ""
                one, other = {"split first": ((word, images), (word, masks)), "split last": ((images, word), (masks, word)),
                              "beside": ((word,), (word,))}[order]
                put(bricks[split, k], root.joinpath(*top, *one, f"{split}_{k}.jpg"))
                put(bricks["mask"], root.joinpath(*top, *other, f"{split}_{k}{suffix}.png"))
        found = judge(root, "seg", truth)
        assert found and len(found) == len(truth), "pairs are read in every arrangement"


@examples(25)
@given(st.sampled_from(WORDS_OF["train"]), st.sampled_from(WORDS_OF["val"]), tops,
       st.sampled_from(["{s}/images", "images/{s}", "{s}", "{s}/data"]),
       st.sampled_from(["{s}/labels.json", "annotations/instances_{s}.json", "{s}.json", "{s}/annotations/{s}.json",
                        "labels/{s}_mini.json", "all"]),
       st.sampled_from(["{}", "./{}", "images/{}", "C:\\set\\{}"]))
def test_label_files_and_images_in_any_arrangement(bricks, train, val, top, images, labels, form):
    with folder() as root:
        truth, every = {}, []
        for split, word in (("train", train), ("val", val)):
            infos = [dict(id=k + 100 * (split == "val"), file_name=form.format(f"{split}_{k}.jpg"), width=32, height=24)
                     for k in range(4)]
            every += infos
            for k in range(4):
                truth[f"{split}_{k}.jpg"] = split, ""
                put(bricks[split, k], root.joinpath(*top, *images.format(s=word).split("/"), f"{split}_{k}.jpg"))
            for target, those in ((labels.format(s=word), infos), ("labels.json", every)):
                if (target == "labels.json") == (labels == "all"):
                    path = root.joinpath(*top, *target.split("/"))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(dict(images=those, categories=[dict(id=1, name="cat")], annotations=[
                        dict(id=i["id"], image_id=i["id"], category_id=1, bbox=[1, 1, 9, 9], iscrowd=0) for i in those])))
        found = judge(root, "det", truth)
        assert found and len(found) == len(truth), "every arrangement is read"


# words and splits

@examples(150)
@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=1, max_size=30), st.floats(0.01, 0.99),
       st.randoms(use_true_random=False))
def test_split_off_keeps_every_class_in_both_halves(classes, share, shuffler):
    items = [(f"/d/{k}.jpg", names) for k, names in enumerate(classes)]
    val = split_off(items, share)
    mixed = list(items)
    shuffler.shuffle(mixed)
    assert split_off(mixed, share) == val <= {path for path, _ in items}
    count = Counter(name for _, names in items for name in names)
    for half in ({path for path, _ in items} - val, val):
        shown = {name for path, names in items if path in half for name in names}
        single = all(len(names) <= 1 for names in classes)
        assert not single or shown >= {name for name, number in count.items() if number > 1}, (half, items)


@examples(150)
@given(st.text(max_size=30))
def test_no_name_upsets_the_words_of_splits(name):
    assert {folder_split(name), file_split(name), path_split((name, name))} <= {"", "train", "val", "test"}
    assert "\n" not in one_line(name) and one_line(one_line(name)) == one_line(name)


@examples(150)
@given(st.lists(st.one_of(
    st.text(max_size=20), st.tuples(st.sampled_from(sorted(LAYOUT_KEYS)), st.text(max_size=12)).map("=".join),
    st.text("0123456789:|ax²٣", max_size=12).map("det_names={}".format)), max_size=3))
def test_a_layout_is_read_or_refused(given_words):
    try:
        assert set(read_layout(tuple(given_words))) <= set(LAYOUT_KEYS)
    except InputError as error:
        assert "layout=" in str(error)


# arbitrary bytes

STARTS = [b"", b"\xff\xd8\xff\xe0\x00\x10JFIF\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"BM", b"RIFF\x10\0\0\0WEBPVP8 ", b"GIF89a",
          b"II*\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\0\0\xfe\xff",
          b'{"images": [', b"[[", b"background\n", b"\x00\x00\x00\x0cjP  "]


@examples(150)
@given(st.sampled_from(STARTS), st.binary(max_size=80))
def test_arbitrary_bytes_are_read_or_refused_by_every_reader(start, rest):
    with folder() as place:
        for name, read in (("a.json", read_json), ("a.png", lambda p: read_mask(str(p))), ("a.jpg", lambda p: read_image(str(p))),
                           ("classes.txt", lambda p: seg_names(p.parent)), ("b.json", lambda p: read_coco(p, lambda name: None))):
            path = place / name
            path.write_bytes(start + rest)
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1500
