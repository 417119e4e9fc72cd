"""Five hundred damaged data folders, made from a seed: each ends in a clear message or in a right reading."""
import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_onehead.core.config import TASKS, TASK_TITLES
from unified_onehead.core.files import InputError
from unified_onehead.data.check import check_minis
from unified_onehead.data.records import load_sample
from unified_onehead.data.sources import read_minis

CASES, CHUNKS, SEED, LIMIT = 500, 10, 0, 60  # LIMIT: seconds for a case that takes a fifth of one
FOLDERS = {"det": "mini_coco_det", "seg": "mini_voc_seg", "cls": "imagenette_160"}
COUNT = {"train": 6, "val": 4}
NAMES = {7: "cat", 3: "Hündin", 12: "dog"}  # category id -> name
WNIDS = {"n01440764": "tench", "n03028079": "church"}


# the clean set

def picture(rng, width, height):
    "Soft blobs: no two pictures look alike, and each has contrast."
    return Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def write_clean(root):
    rng = np.random.default_rng(SEED)
    for split, count in COUNT.items():
        det, seg, cls = (root / FOLDERS[task] / split for task in ("det", "seg", "cls"))
        images, notes = [], []
        for folder in (det / "data", seg / "JPEGImages", seg / "SegmentationClass", *(cls / wnid for wnid in WNIDS)):
            folder.mkdir(parents=True)
        for k in range(count):
            width, height = int(rng.integers(40, 60)), int(rng.integers(30, 40))
            name = f"det_{split}_{k}.jpg"
            picture(rng, width, height).save(det / "data" / name)
            images.append(dict(id=100 + 7 * k, file_name=name, width=width, height=height))
            for category in [7, 3, 12][k % 2:]:
                x, y, w, h = (int(v) for v in (*rng.integers(1, 15, 2), *rng.integers(8, 15, 2)))
                notes.append(dict(id=len(notes) + 1, image_id=100 + 7 * k, category_id=category, bbox=[x, y, w, h], iscrowd=0,
                                  area=w * h, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
            name = f"seg_{split}_{k}"
            picture(rng, width, height).save(seg / "JPEGImages" / f"{name}.jpg")
            mask = np.zeros((height, width), np.uint8)
            mask[5:15, 5:20], mask[18:25, 20:35], mask[18, 20:35] = 1 + k % 2, 1 + (k + 1) % 2, 255
            Image.fromarray(mask).save(seg / "SegmentationClass" / f"{name}.png")
            picture(rng, width, height).save(cls / list(WNIDS)[k % 2] / f"cls_{split}_{k}.JPEG")
        categories = [dict(id=key, name=name, supercategory="animal") for key, name in NAMES.items()]
        write_json(det / "labels.json", dict(info={}, images=images, annotations=notes, categories=categories))
    (root / FOLDERS["seg"] / "classes.txt").write_text("background\ncat\ndog\n")


def write_json(path, data):
    path.write_bytes(json.dumps(data, ensure_ascii=False).encode())


def facts_of(minis):
    "For each record: task, file name -> split, what must not change without a word."
    found = {}
    for task, splits in minis.records.items():
        names = minis.classes[task]
        for split, records in splits.items():
            for r in records:
                labels = sorted(zip([names[n] for n in r.labels], map(tuple, r.boxes), r.crowd))
                name = names[r.category] if task == "cls" else ""
                found.setdefault((task, Path(r.path).name), []).append((split, labels, name))
    return found


def pixels_of(record, names):
    "What decoding gives, mask values by name."
    sample = load_sample(record)
    digest = lambda tensor: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()  # noqa: E731
    mask = [] if sample.mask is None else [(names[v] if v < len(names) else v, int((sample.mask == v).sum()))
                                           for v in sample.mask.unique().tolist()]
    return tuple(sample.image.shape), digest(sample.image), mask


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "The clean set, and what is read from it."
    root = tmp_path_factory.mktemp("clean") / "data"
    write_clean(root)
    minis, report = read_minis(root), check_minis(root)
    assert report.ok and not report.warnings and not minis.notes, report.text()
    pixels = {(task, Path(r.path).name): pixels_of(r, minis.classes[task])
              for task, splits in minis.records.items() for records in splits.values() for r in records}
    return root, facts_of(minis), pixels


# a case: its folder, its chance, and what its mutations may change

class Case:
    def __init__(self, root, rng, facts):
        self.root, self.rng, self.facts, self.recipe = root, rng, facts, []
        self.free = set()  # records that may change without a word: the mutation made other, plausible data
        self.told = set()  # records whose labels may change, but not without a word
        self.gone = set()  # records that may go without a word; all others may go with one
        self.alias = {}  # new file name -> old
        self.added = set()  # names of files that may be read as well

    def keys(self, task, *words):
        "Keys of records: of a task, whose file name has all words."
        return {key for key in self.facts if key[0] == task and all(word in key[1] for word in words)}

    def key(self, path):
        "The record of an image or mask file; None for a file that is in none."
        name = self.alias.get(path.name, path.name)
        stem = name.rsplit(".", 1)[0]
        return next((key for key in self.facts if key[1] == name or key[1].rsplit(".", 1)[0] == stem), None)

    def files(self, *suffixes, task="", folder=""):
        base = self.root / FOLDERS[task] if task else self.root
        return sorted(Path(place) / name for place, _, names in os.walk(base) for name in names
                      if name.lower().endswith(suffixes) and folder in place and os.path.isfile(Path(place) / name))

    def pick(self, items):
        items = sorted(items, key=str)
        if not items:
            raise LookupError("nothing to change")
        return self.rng.choice(items)

    def image(self, masks=False):
        "An image that is a record's, or a mask."
        files = self.files(".png", folder="SegmentationClass") if masks else [
            p for p in self.files(".jpg", ".jpeg") if "SegmentationClass" not in str(p)]
        return self.pick(p for p in files if self.key(p))

    def labels(self):
        "A label file, parsed, and the split it is about."
        found = []
        for path in self.files(".json"):
            try:
                data = json.loads(path.read_bytes())
                if data["images"] and data["annotations"] and data["categories"]:
                    found.append((path, data, "train" if "_train_" in data["images"][0]["file_name"] else "val"))
            except (ValueError, TypeError, LookupError):
                continue
        return self.pick(found)

    def all_of(self, split, kind="told"):
        getattr(self, kind).update(self.keys("det", f"_{split}_"))

    def image_key(self, data, note):
        "The record that an annotation belongs to."
        name = next((i.get("file_name") for i in data["images"] if i.get("id") == note.get("image_id")), None)
        return self.key(Path(name)) if isinstance(name, str) else None


# label files: entries and values

TRASH = (None, float("nan"), 1e308, -5, "x", "", [], {}, True, [[1]], 10 ** 30, "1e3", 0.5, " ", "\0", "a\nb", -1e-9, "NaN")


def entry_of(case, data):
    "A list of entries, one of it, and the records it is about."
    kind = case.rng.choice(["images", "annotations", "annotations", "categories"])
    entry = case.rng.choice(data[kind])
    return kind, entry


def touched(case, data, kind, entry, split):
    if kind == "categories":
        return case.keys("det")  # the numbering is of both splits
    key = case.image_key(data, entry) if kind == "annotations" else case.key(Path(str(entry.get("file_name"))))
    return {key} if key else case.keys("det", f"_{split}_")


HARMLESS = {"area", "segmentation", "supercategory", "info"}  # nothing is read from them


def delete_key(case):
    path, data, split = case.labels()
    kind, entry = entry_of(case, data)
    key = case.pick(entry)
    touch = touched(case, data, kind, entry, split)
    del entry[key]
    if key not in HARMLESS and not (kind == "annotations" and key == "id"):
        case.told |= touch
    write_json(path, data)
    return f"{path.name} of {split}: {kind} without {key}"


def delete_entry(case):
    path, data, split = case.labels()
    kind, entry = entry_of(case, data)
    (case.free if kind == "annotations" else case.told).update(touched(case, data, kind, entry, split))
    data[kind].remove(entry)
    write_json(path, data)
    return f"{split}: an entry of {kind} less"


def duplicate_entry(case):
    path, data, split = case.labels()
    kind, entry = entry_of(case, data)
    data[kind].insert(case.rng.randrange(len(data[kind]) + 1), dict(entry))
    write_json(path, data)
    return f"{split}: an entry of {kind} twice"


def retype(case):
    path, data, split = case.labels()
    kind, entry = entry_of(case, data)
    key, value = case.pick(entry), case.rng.choice(TRASH)
    touch = touched(case, data, kind, entry, split)
    plausible = (key == "name" and type(value) in (int, float, str)) or (key == "iscrowd" and value is True)
    if key == "bbox" and case.rng.random() < .7 and isinstance(entry["bbox"], list) and entry["bbox"]:
        place = case.rng.randrange(len(entry["bbox"]))
        entry["bbox"] = [value if k == place else v for k, v in enumerate(entry["bbox"])]
        plausible = type(value) in (int, float) or value == "1e3"
        key = f"bbox[{place}]"
    else:
        entry[key] = value
    if key not in HARMLESS and not (kind == "annotations" and key == "id"):
        (case.free if plausible else case.told).update(touch)
    path.write_bytes(json.dumps(data).encode())
    return f"{split}: {kind} with {key} = {value!r}"


def retype_list(case):
    path, data, split = case.labels()
    key = case.rng.choice(["images", "annotations", "categories"])
    data[key] = case.rng.choice([None, [], {}, "x", 5, [None], [[]], [1, 2], {"a": {}}, True])
    case.told |= case.keys("det")
    write_json(path, data)
    return f"{split}: {key} = {data[key]!r}"


def nest(case):
    path, data, split = case.labels()
    how = case.rng.randrange(4)
    data = [[data], {"data": data}, {**data, "images": [data["images"]]},
            {**data, "annotations": {"a": data["annotations"]}}][how]
    case.all_of(split)
    write_json(path, data)
    return f"{split}: nested in way {how}"


def other_category(case):
    "Another id that exists: plausible data, for this image only."
    path, data, split = case.labels()
    note = case.pick(n for n in data["annotations"] if isinstance(n, dict))
    case.free |= touched(case, data, "annotations", note, split)
    note["category_id"] = case.rng.choice(list(NAMES))
    write_json(path, data)
    return f"{split}: another category"


def cycle_ids(case):
    path, data, split = case.labels()
    kind = case.rng.choice(["images", "categories"])
    ids = [entry.get("id") for entry in data[kind]]
    for entry, key in zip(data[kind], ids[1:] + ids[:1]):
        entry["id"] = key
    case.free |= case.keys("det", f"_{split}_") if kind == "images" else case.keys("det")
    write_json(path, data)
    return f"{split}: ids of {kind} cycled"


def other_boxes(case):
    "The whole file in another format: never read in silence."
    path, data, split = case.labels()
    how = case.rng.choice(["xyxy", "cxcywh", "fractions", "per cent", "yxyx"])
    sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
    for note in data["annotations"]:
        (x, y, w, h), (width, height) = note["bbox"], sizes[note["image_id"]]
        scale = 1 if how == "fractions" else 100
        note["bbox"] = {"xyxy": [x, y, x + w, y + h], "cxcywh": [x + w / 2, y + h / 2, w, h], "yxyx": [y, x, y + h, x + w]}.get(
            how, [scale * x / width, scale * y / height, scale * w / width, scale * h / height])
    case.all_of(split)
    write_json(path, data)
    return f"{split}: boxes as {how}"


# label files: forms that say the same

def same_ids(case):
    path, data, split = case.labels()
    how = case.rng.choice(["text", "float", "shift", "huge", "names"])
    change = {"text": str, "float": float, "shift": lambda v: v + 1000, "huge": lambda v: v + 10 ** 17,
              "names": lambda v: f"i-{v}"}[how]
    for kind, key in (("images", "id"), ("annotations", "image_id")):
        for entry in data[kind]:
            entry[key] = change(entry[key])
    write_json(path, data)
    return f"{split}: image ids, {how}"


def same_order(case):
    path, data, split = case.labels()
    for kind in ("images", "annotations", "categories"):
        data[kind] = [dict(case.rng.sample(list(e.items()), len(e))) for e in case.rng.sample(data[kind], len(data[kind]))]
    data = dict(case.rng.sample(list(data.items()), len(data)))
    data["licenses"] = [{"id": 1, "url": None}]
    data["images"][0]["coco_url"] = data["annotations"][0]["attributes"] = {"occluded": [False]}
    write_json(path, data)
    return f"{split}: in another order, with more keys"


def same_values(case):
    path, data, split = case.labels()
    for info in data["images"]:
        info["width"], info["height"] = f"{info['width']}", float(info["height"])
    for note in data["annotations"]:
        note["bbox"], note["iscrowd"] = [f"{v}.0" for v in note["bbox"]], case.rng.choice(["0", False, "false", 0.0])
        if case.rng.random() < .5:
            del note["area"], note["segmentation"]
    write_json(path, data)
    return f"{split}: numbers as text"


def same_names(case):
    path, data, split = case.labels()
    form = case.rng.choice(["./{}", "data/{}", "data\\{}", "/home/me/{}/data/", "../data/{}", "data//{}", "C:\\set\\data\\{}"])
    form = "/home/me/data/{}" if form.endswith("/") else form
    for info in data["images"]:
        info["file_name"] = form.format(info["file_name"])
    write_json(path, data)
    return f"{split}: file names as {form}"


def same_text(case):
    path, data, split = case.labels()
    how = case.rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "ascii", "indent", "nfd", "crlf"])
    text = json.dumps(data, ensure_ascii=how == "ascii", indent=2 if how in ("indent", "crlf") else None)
    text = {"nfd": unicodedata.normalize("NFD", text), "crlf": text.replace("\n", "\r\n")}.get(how, text)
    path.write_bytes(text.encode("utf-8" if how in ("indent", "nfd", "crlf", "ascii") else how))
    return f"{split}: text as {how}"


# label files: bytes and files

def truncate_labels(case):
    path, data, split = case.labels()
    raw = path.read_bytes()
    cut = case.rng.randrange(len(raw))
    path.write_bytes(raw[:cut])
    case.all_of(split)
    return f"{split}: labels cut at {cut} of {len(raw)}"


def flip_labels(case):
    path, data, split = case.labels()
    raw = bytearray(path.read_bytes())
    for _ in range(case.rng.randint(1, 4)):
        raw[case.rng.randrange(len(raw))] = case.rng.randrange(256)
    path.write_bytes(raw)
    case.free |= case.keys("det")
    case.gone |= case.keys("det", f"_{split}_")
    return f"{split}: bytes of labels flipped"


def key_twice(case):
    path, data, split = case.labels()
    text, (key, value) = path.read_text(encoding="utf-8"), case.rng.choice(
        [("file_name", '"det_val_1.jpg"'), ("bbox", "[1, 1, 9, 9]"), ("category_id", "3"), ("images", "[]"), ("id", "100")])
    path.write_text(text.replace(f'"{key}":', f'"{key}": {value}, "{key}":', 1), encoding="utf-8")
    case.told |= case.keys("det")
    return f"{split}: the key {key} twice"


def no_labels(case):
    path, data, split = case.labels()
    how = case.rng.choice(["folder", "fifo", "empty", "broken link", "gone", "gzip", "lfs", "html", "self link", "zeros"])
    path.unlink()
    content = {"empty": b"", "gzip": b"\x1f\x8b\x08abc", "lfs": b"version https://git-lfs.github.com/spec/v1\n",
               "html": b"<!DOCTYPE html><html>", "zeros": bytes(500)}
    if how in content:
        path.write_bytes(content[how])
    make_strange(path, how)
    case.all_of(split)
    return f"{split}: instead of labels {how}"


def make_strange(path, how):
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how.endswith("link"):
        path.symlink_to(path if how == "self link" else "/nowhere/at/all")


def foreign_labels(case):
    "Other label files beside the right one."
    path, data, split = case.labels()
    how = case.rng.choice(["copy", "less", "junk", "package", "other split", "captions", "link"])
    target = path.with_name(case.rng.choice(["labels_old.json", "a.json", "z.json", "instances.json"]))
    if how in ("copy", "link"):
        shutil.copy(path, target) if how == "copy" else target.symlink_to(path)
    elif how == "less":
        case.free |= touched(case, data, "annotations", data["annotations"][0], split)
        write_json(target, {**data, "annotations": data["annotations"][1:]})
    elif how == "junk":
        target.write_bytes(b'{"images": [')
    elif how == "other split":
        write_json(path, json.loads(json.dumps(data).replace(f"_{split}_", "_val_" if split == "train" else "_train_")))
        case.all_of(split)
    else:
        notes = [{"id": 1, "image_id": data["images"][0].get("id"), "caption": "a thing"}]
        write_json(target, {"name": "tool"} if how == "package" else {**data, "annotations": notes})
    return f"{split}: beside labels {target.name}: {how}"


# images

def as_bytes(image, kind="PNG", **more):
    image.save(out := io.BytesIO(), kind, **more)
    return out.getvalue()


def bomb(width=60_000, height=60_000):
    "A PNG whose header declares more pixels than anybody has."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def exif(tag):
    data = Image.Exif()
    data[0x0112] = tag
    return data


CONTENT = {
    "empty": lambda im, raw, rng: b"", "cut": lambda im, raw, rng: raw[:rng.randrange(len(raw))],
    "zeros": lambda im, raw, rng: bytes(len(raw)), "text": lambda im, raw, rng: b"<html>quota exceeded</html>",
    "1x1": lambda im, raw, rng: as_bytes(im.resize((1, 1)), "JPEG"), "bomb": lambda im, raw, rng: bomb(),
    "half a bomb": lambda im, raw, rng: bomb(12_000, 9_000), "no pixels": lambda im, raw, rng: bomb(0, 5),
    "cmyk": lambda im, raw, rng: as_bytes(im.convert("CMYK"), "JPEG"),
    "grey": lambda im, raw, rng: as_bytes(im.convert("L"), "JPEG"),
    "16 bit": lambda im, raw, rng: as_bytes(Image.fromarray(np.array(im.convert("L")).astype(np.uint16) * 256)),
    "animated": lambda im, raw, rng: as_bytes(im, "GIF", save_all=True, append_images=[im.rotate(180)]),
    "exif garbage": lambda im, raw, rng: as_bytes(im, "JPEG", exif=b"Exif\0\0" + rng.randbytes(40)),
    "exif 6": lambda im, raw, rng: as_bytes(im, "JPEG", exif=exif(6)),
    "exif 3": lambda im, raw, rng: as_bytes(im, "JPEG", exif=exif(3)),
    "exif 9": lambda im, raw, rng: as_bytes(im, "JPEG", exif=exif(9)), "tiff": lambda im, raw, rng: as_bytes(im, "TIFF"),
    "webp": lambda im, raw, rng: as_bytes(im, "WEBP"), "alpha": lambda im, raw, rng: as_bytes(im.convert("RGBA")),
    "other size": lambda im, raw, rng: as_bytes(im.resize((im.width + 5, im.height - 3)), "JPEG"),
    "flipped": lambda im, raw, rng: bytes(b ^ (1 << rng.randrange(8)) if rng.random() < .02 else b for b in raw),
    "appended": lambda im, raw, rng: raw + rng.randbytes(50)}


def image_content(case):
    path, how = case.image(), case.rng.choice(list(CONTENT))
    raw = path.read_bytes()
    with Image.open(io.BytesIO(raw)) as image:
        content = CONTENT[how](image.convert("RGB"), raw, case.rng)
    path.unlink()
    path.write_bytes(content)
    case.free.add(case.key(path))  # other pixels; that the labels stay is judged apart
    return f"{path.name}: {how}"


def image_strange(case):
    path = case.image()
    how = case.rng.choice(["folder", "fifo", "broken link", "self link", "good link"])
    if how == "good link":
        path.rename(path.parent / ".hidden_target")
        path.symlink_to(".hidden_target")
    else:
        path.unlink()
        make_strange(path, how)
    return f"{path.name}: a {how}"


ODD_NAMES = ("new\nline{}", "quote'\"{}", "emoji 🦆{}", "{}" + "l" * 200, " space {} ", "tab\t{}", "-dash{}", "semi;colon,{}",
             "%s %d {}", "{}.jpg", "ue\u0308{}", "#{}", "~{}", "a{{}}b{}", "\u202egpj{}", "bad\udcff{}", "Copy of {}", "{}(1)")


def image_name(case):
    path = case.image()
    stem, suffix = path.name.rsplit(".", 1)
    name = case.rng.choice(ODD_NAMES).format(stem) + "." + suffix
    key = case.key(path)
    case.alias[name] = key[1]
    path.rename(path.with_name(name))
    return f"{path.name}: called {name!r}"


def image_suffix(case):
    path = case.image()
    key, suffix = case.key(path), case.rng.choice([".png", ".JPG", ".bmp", ".webp", ".tif", ".gif", ".heic", ".jpg_", "",
                                                   ".jpg.tmp", ".jfif"])
    name = path.name.rsplit(".", 1)[0] + suffix
    case.alias[name] = key[1]
    path.rename(path.with_name(name))
    return f"{path.name}: called {name}"


def image_gone(case):
    path = case.image()
    path.unlink()
    if case.key(path)[0] == "cls":
        case.gone.add(case.key(path))  # nothing says that it was there
    return f"{path.name}: gone"


def image_again(case):
    "A picture stands in both splits, or twice in one."
    path = case.image()
    split, other = ("train", "val") if "_train_" in path.name else ("val", "train")
    target = Path(str(path.parent).replace(f"/{split}", f"/{other}")) / case.rng.choice([path.name, "again" + path.suffix])
    if target.parent == path.parent or not target.parent.is_dir() or target.exists():
        raise LookupError("no such folder")
    shutil.copy(path, target)
    case.added.add(target.name)
    return f"{path.name}: also as {target.parent.name}/{target.name} of {other}"


# masks

def mask_content(case):
    path = case.image(masks=True)
    how = case.rng.choice(["size", "P", "1", "I;16", "RGB", "LA", "out of range", "255 only", "zeros", "JPEG", "cut", "F",
                           "VOC palette", "grey palette", "colours", "empty", "bomb"])
    with Image.open(path) as image:
        ids = np.array(image.convert("L")) if image.mode != "P" else np.array(image)
    plain = Image.fromarray(ids)
    palette = plain.copy().convert("P")
    palette.putdata(ids.ravel().tolist())
    if how == "VOC palette":
        palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 756 + [224, 224, 192])
    content = {
        "size": lambda: as_bytes(plain.resize((ids.shape[1] + 2, ids.shape[0]), 0)), "P": lambda: as_bytes(palette),
        "1": lambda: as_bytes(plain.convert("1")), "I;16": lambda: as_bytes(Image.fromarray(ids.astype(np.uint16))),
        "RGB": lambda: as_bytes(plain.convert("RGB")), "LA": lambda: as_bytes(plain.convert("LA")),
        "out of range": lambda: as_bytes(Image.fromarray(ids + 40)), "255 only": lambda: as_bytes(Image.fromarray(ids | 255)),
        "zeros": lambda: as_bytes(Image.fromarray(ids * 0)), "JPEG": lambda: as_bytes(plain, "JPEG"),
        "cut": lambda: path.read_bytes()[:case.rng.randrange(path.stat().st_size)],
        "F": lambda: as_bytes(plain.convert("F"), "TIFF"),
        "VOC palette": lambda: as_bytes(palette), "grey palette": lambda: as_bytes(palette), "empty": lambda: b"", "bomb": bomb,
        "colours": lambda: as_bytes(Image.fromarray(np.stack([ids * 9, ids * 50, 255 - ids], 2)))}[how]()
    path.write_bytes(content)
    if how in ("255 only", "zeros", "1", "out of range"):
        case.free.add(case.key(path))
    return f"{path.name}: {how}"


def mask_file(case):
    path = case.image(masks=True)
    how = case.rng.choice(["gone", "fifo", "folder", "broken link", "jpg", "suffix", "upper", "npy", "alone"])
    if how == "alone":
        shutil.copy(path, path.with_name("alone.png"))
    elif how in ("jpg", "suffix", "upper", "npy"):
        stem = path.name.rsplit(".", 1)[0]
        path.rename(path.with_name(stem + {"jpg": ".jpg", "suffix": "_mask.png", "upper": ".PNG", "npy": ".npy"}[how]))
    else:
        path.unlink()
        make_strange(path, how)
    return f"{path.name}: {how}"


def all_masks(case):
    "All masks of a split in another folder, or another kind of file."
    split = case.rng.choice(["train", "val"])
    files = [p for p in case.files(".png", folder="SegmentationClass") if f"_{split}_" in p.name]
    how, places = case.rng.choice(["JPEG", "beside", "gone", "object copy"]), {p.parent for p in files}
    case.pick(files)
    for path in files:
        if how == "JPEG":
            with Image.open(path) as image:
                image.convert("L").save(path.with_suffix(".jpg"))
            path.unlink()
        elif how == "beside":
            path.rename(path.parent.parent / "JPEGImages" / path.name)
        elif how == "gone":
            path.unlink()
    if how == "object copy":
        shutil.copytree(min(places), min(places).with_name("SegmentationObject"), dirs_exist_ok=True)
    return f"masks of {split}: {how}"


# folders

def split_folder(case):
    return case.pick(Path(place) / name for place, names, _ in os.walk(case.root) for name in names if name in ("train", "val"))


def rename_split(case):
    path = split_folder(case)
    options = ["{}2017", "{}ing", "mini_{}", "{}_160", "{}set", "{}-images", "my {}", "{} ", "{}.old", "x{}x", "{}s", "test",
               "{}_mini", "2012_{}"]
    name = case.rng.choice([*options, str(path.name).upper(), path.name.title(), "valid", "validation"]).format(path.name)
    if path.with_name(name).exists():
        raise LookupError("there is one")
    path.rename(path.with_name(name))
    if (name in ("valid", "validation") and path.name == "train") or name == "test":
        raise LookupError("plausible, and another split")
    return f"{path.parent.name}/{path.name}: called {name!r}"


def rename_dataset(case):
    path = case.pick(p for p in case.root.iterdir() if p.is_dir() and p.name in FOLDERS.values())
    name = case.rng.choice([path.name.replace("_", "-"), path.name.upper(), "foo", "coco", "a b", "données", "images", "labels",
                            "data", "new\nline", path.name + "2", "bad\udcff", "train", "masks", "det"])
    if path.with_name(name).exists():
        raise LookupError("there is one")
    path.rename(path.with_name(name))
    return f"{path.name}: called {name!r}"


def nest_folder(case):
    path = case.pick(Path(place) for place, names, _ in os.walk(case.root) if names and place != str(case.root))
    inner = case.rng.choice(["inner", path.name, "data", "images"])
    moved = path.with_name(".moving")
    path.rename(moved)
    path.mkdir()
    moved.rename(path / inner)
    return f"{path.relative_to(case.root)}: one folder deeper, {inner}"


def empty_folder(case):
    path = case.pick(Path(place) for place, _, _ in os.walk(case.root) if place != str(case.root))
    shutil.rmtree(path)
    if case.rng.random() < .6:
        path.mkdir()
    return f"{path.relative_to(case.root)}: emptied or gone"


def copy_folder(case):
    path = case.pick(Path(place) for place, _, _ in os.walk(case.root) if place != str(case.root))
    name = path.name + case.rng.choice(["2", " copy", "_old", "1", " (1)", ".bak", "ing", "-small"])
    if path.with_name(name).exists():
        raise LookupError("there is one")
    shutil.copytree(path, path.with_name(name), symlinks=True, ignore=lambda place, names: [
        n for n in names if not (os.path.isfile(Path(place) / n) or os.path.isdir(Path(place) / n))])
    if path.name in WNIDS:
        case.told |= case.keys("cls")  # another class, with the same pictures
    return f"{path.relative_to(case.root)}: also as {name}"


def junk(case):
    path = case.pick(Path(place) for place, _, _ in os.walk(case.root))
    how = case.rng.choice([".DS_Store", "Thumbs.db", "README.md", "notes.txt", "._x.jpg", "__MACOSX", "labels.cache", "data.zip",
                           "fifo", "x.csv", "empty folder", "link to above", "broken link", "tif",
                           "fifo without suffix", "new\nline.txt",
                           "list.txt", "checkpoints"])
    if how == "__MACOSX":
        (path / how).mkdir(exist_ok=True)
        (path / how / "._det_train_0.jpg").write_bytes(b"\0\5\26\7")
    elif how in ("empty folder", "checkpoints"):
        (path / how).mkdir(exist_ok=True)
    elif how == "link to above":
        (path / "above").symlink_to(case.root)
    elif how == "broken link":
        (path / "dead").symlink_to("/nowhere")
    elif how.startswith("fifo"):
        os.mkfifo(path / ("pipe" if "without" in how else case.rng.choice(["pipe.txt", "pipe.csv", "pipe.yaml"])))
    elif how == "tif":
        (path / "scan.tif").write_bytes(b"II*\0")
    else:
        (path / how).write_text("train\nseg_train_0\n0 0.5 0.5 0.2 0.2\n")
    return f"{path.relative_to(case.root)}: with {how!r}"


def class_folder(case):
    base = case.root / FOLDERS["cls"]
    path = case.pick(p for p in base.glob("*/n0*") if p.is_dir())
    how = case.rng.choice(["empty class", "nested", "loose", "renamed", "link", "tif only", "moved"])
    own = {case.key(p) for p in path.iterdir()} & set(case.facts)
    if how == "empty class":
        (path.parent / "n00000001").mkdir()
    elif how == "nested":
        (path / "images").mkdir()
        for file in case.pick([sorted(p for p in path.iterdir() if p.is_file())]):
            file.rename(path / "images" / file.name)
    elif how == "loose":
        file = case.pick(p for p in path.iterdir() if p.is_file())
        file.rename(path.parent / file.name)
    elif how == "renamed":
        path.rename(path.with_name("what_is_this"))
        case.free |= own
    elif how == "link":
        path.rename(base / f".{path.name}_{path.parent.name}")
        path.symlink_to(base / f".{path.name}_{path.parent.name}")
    elif how == "tif only":
        (path.parent / "n00000002").mkdir()
        (path.parent / "n00000002" / "a.tif").write_bytes(b"II*\0")
    else:
        path.rename(base / path.name)
    return f"{path.parent.name}/{path.name}: {how}"


def class_list(case):
    path = case.pick(case.files("classes.txt"))
    text = case.rng.choice(["background\r\ncat\r\ndog\r\n", "\ufeffbackground\ncat\ndog", "__background__\ncat\ndog\n",
                            "cat\ndog\n", "Background\n\ncat\n\ndog\n\n", "", "background\ncat\n", "background\ncat\ncat\n",
                            "\n\n", "a\0b\n", "background",
                            "background\ncat\ndog\nbird\n"])
    path.write_bytes(text.encode(case.rng.choice(["utf-8", "utf-8", "utf-16"])))
    if text.split() != ["background", "cat", "dog"]:
        case.free |= case.keys("seg")
    return f"classes.txt: {text!r}"


OPERATORS = (
    delete_key, delete_entry, duplicate_entry, retype, retype, retype_list, nest, other_category, cycle_ids, other_boxes,
    same_ids, same_order, same_values, same_names, same_text, truncate_labels, flip_labels, key_twice, no_labels,
    foreign_labels, image_content, image_content, image_strange, image_name, image_suffix, image_gone, image_again,
    mask_content, mask_content, mask_file, all_masks, rename_split, rename_dataset, nest_folder, empty_folder, copy_folder,
    junk, junk, class_folder, class_list)


def build(root, number, facts):
    "Case `number`: the same folder every time."
    rng = random.Random(f"{SEED}/{number}")
    case = Case(root, rng, facts)
    for _ in range(rng.choice([1, 1, 2, 3])):
        for _ in range(20):
            operator = rng.choice(OPERATORS)
            try:
                case.recipe.append(f"{operator.__name__}: {operator(case)}")
                break
            except (LookupError, OSError, ValueError, TypeError, AttributeError):  # an earlier mutation took its ground
                continue
    return case


# the judge

class TooLong(BaseException):
    "Not an Exception, so that no reader takes it for a broken file."


def ring(*_):
    raise TooLong


def clear(message, root):
    "What a message must be."
    assert message == message.strip() and len(message) < 1500, f"{len(message)} characters: {message[:300]} .. {message[-300:]}"
    assert "\n" not in message and "\r" not in message and "\t" not in message, f"not one paragraph: {message!r}"
    assert str(root) in message or "layout=" in message or "det_classes" in message, f"names no file: {message}"
    message.encode()
    return message


def judge(case, pixels):
    "Read a case in every way, and compare with the clean set."
    report = check_minis(case.root)
    said = [clear(words, case.root) for words in report.problems if not words.startswith(tuple(TASK_TITLES.values()))]
    said += [words for words in report.problems if words not in said] + report.warnings
    report.text().encode()
    for task in TASKS:
        try:
            minis = read_minis(case.root, tasks=(task,))
        except InputError as error:
            said.append(clear(str(error), case.root))
            assert any(str(error) == words for words in report.problems), f"data check says something else: {error}"
            continue
        judge_task(case, task, minis, said + minis.notes, pixels)


def judge_task(case, task, minis, said, pixels):
    found, changed = {}, []
    for split, records in minis.records[task].items():
        for record in records:
            name = Path(record.path).name
            key = (task, case.alias.get(name, name))
            facts = facts_of(type(minis)({task: {split: [record]}}, minis.classes))[task, name][0]
            try:
                seen = pixels_of(record, minis.classes[task])
            except InputError as error:
                said.append(clear(str(error), case.root))
                seen = None
            if key not in case.facts:
                assert name in case.added, f"{split} has {name}, which is none of the clean set"
                continue
            assert key not in found or said, f"{name} is read twice in silence"
            found[key] = facts
            (split0, labels0, class0), = case.facts[key]
            assert split == split0 or name in case.added, f"{name} is in {split}, not in {split0}"
            same_pixels = seen is None or seen == pixels[key] or (case.free | case.told) & {key}
            if facts[1:] != (labels0, class0) or not same_pixels:
                changed.append(f"{name}: {facts} was {case.facts[key][0]}, {seen} was {pixels[key]}")
                assert key in case.free | case.told, changed[-1]
                assert key in case.free or said, f"in silence: {changed[-1]}"
    lost = {key for key in case.facts if key[0] == task} - {*found} - case.gone
    title, folder = TASK_TITLES[task].lower(), minis.folders[task]
    heard = any(title in words.lower() or folder in words for words in said)
    assert heard or not lost, f"lost in silence: {sorted(lost)}; {said}"


def run_case(number, root, clean):
    source, facts, pixels = clean
    shutil.copytree(source, root)
    case = build(root, number, facts)
    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        judge(case, pixels)
    except TooLong as error:
        raise AssertionError(f"case {number} takes over {LIMIT} seconds. Recipe: {case.recipe}") from error
    except Exception as error:
        raise AssertionError(f"case {number}: {type(error).__name__}: {error}. Recipe: {case.recipe}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    shutil.rmtree(root)


@pytest.mark.filterwarnings("ignore")  # what Pillow says of damaged pictures
@pytest.mark.skipif(not hasattr(os, "mkfifo") or not hasattr(signal, "alarm"), reason="needs pipes and alarms")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_malformed_input_ends_in_a_message_or_a_right_reading(chunk, clean, tmp_path):
    for number in range(chunk * CASES // CHUNKS, (chunk + 1) * CASES // CHUNKS):
        run_case(number, tmp_path / "d" / str(number), clean)
