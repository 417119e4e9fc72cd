"""What datasets may hold: odd names, odd labels, odd files in place of pictures."""
import functools
import io
import json
import math
import os
import random
import shutil
import socket
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from kinds import kind, printable, refused, refused_or, works
from PIL import Image

from unified_onehead.cli import exit_code
from unified_onehead.core.files import InputError, json_value, one_line
from unified_onehead.core.images import read_image, read_mask
from unified_onehead.core.tables import markdown_table, markdown_text
from unified_onehead.core.testing import toy_results
from unified_onehead.core.viz import draw_boxes, draw_mask, draw_probs
from unified_onehead.data.check import check_minis
from unified_onehead.data.manifest import coco_index, voc_labels
from unified_onehead.data.prepare import read_manifest
from unified_onehead.data.records import load_sample
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import FOLDERS, make_synthetic
from unified_onehead.data.text import read_json, read_text
from unified_onehead.data.yolo import load_yaml
from unified_onehead.run.report import write_report

HOSTILE = ("a\n\n# Heading", "a\r\nb", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\x00b", "a\tb", "tab\x0bfeed", "\x7f",
           "\u202egpj.exe", "a\u2028b",
           "\x9b2J", "\udcff")  # what no name should hold
MARKUP = ("# Heading", "<b>bold</b>", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[link](http://x.y)",
          "![](http://x.y/z.png)",
          "*loud*", "_quiet_", "`code`", "```", "a|b", "| --- |", "$x$", "--- ", "> quote", "- item", "&lt;", "~~gone~~",
          "<!-- hidden", "\\")
DEEP = "[" * 100_000


def minis(tmp, n=4):
    "A fresh copy of small minis."
    kept = make_synthetic(tmp / "kept", n_train=n, n_val=3, side=32) if not (tmp / "kept").exists() else tmp / "kept"
    shutil.rmtree(tmp / "data", ignore_errors=True)
    return shutil.copytree(kept, tmp / "data")


def first(folder, pattern):
    "The first file of a name; any picture where it is *.jpg, whatever its format."
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png") and "Class" not in p.parent.name)
    return found[0] if pattern == "*.jpg" else sorted(folder.rglob(pattern))[0]


def checked(root) -> list:
    "The problems that `data check` names."
    report = check_minis(root)
    assert all(printable(line) for line in report.text().splitlines())
    return report.problems


@kind("names", "a file name that is not UTF-8", "refused at the start, with the name")
def names_in_bytes(tmp):
    for task, folder in FOLDERS.items():
        for raw in (b"caf\xe9.png", b"caf\xe9.txt", b"\xff\xfe", b"caf\xe9"):
            def call(folder=folder, raw=raw, task=task):
                root = minis(tmp)
                place = first(root / folder, "*.png" if task == "seg" else "*.jpg").parent
                target = os.fsencode(place) + b"/" + raw
                if b"." in raw:
                    with open(target, "wb") as file:
                        file.write(b"x")
                else:
                    os.mkdir(target)
                assert checked(root), "nothing is said by the check"
                return read_minis(root)
            yield f"{folder}: {raw!r}", refused(call, "not UTF-8")


@kind("names", "a class folder whose name breaks a line or commands a terminal", "refused, in a line that does neither")
def class_folders(tmp):
    for name in HOSTILE:
        if "\0" in name:
            continue
        def call(name=name):
            root = minis(tmp)
            for split in ("train", "val"):
                place = first(root / FOLDERS["cls"] / split, "*.jpg").parent
                place.rename(place.with_name(name))
            return read_minis(root)
        yield repr(name), refused(call)


@kind("names", "a detection class whose name breaks a line or commands a terminal", "refused, or read as one clean line")
def category_names(tmp):
    for name in HOSTILE:
        def call(name=name):
            root = minis(tmp)
            for path in (root / FOLDERS["det"]).rglob("labels.json"):
                data = json.loads(path.read_text())
                data["categories"][0]["name"] = name
                path.write_text(json.dumps(data))
            return read_minis(root, det_classes=("all",)).classes["det"]
        yield repr(name), refused_or(call, lambda names: all(map(printable, names)))


@kind("names", "a class name that is markup", "shown as it is in report.md")
def names_in_report(tmp):
    def report(name):
        results = toy_results()
        results["scores"] = {"det": {"per_class": {name: .5, "dog": .2, f"{name} 2": None}, "classes_counted": 3}}
        results["data"] = {**results["data"], "boxes": {name: 9, "dog": 3}, "reading": [name, f"detection: {name}"]}
        results["device"] = name
        return write_report(results, [], tmp / "run").read_text(encoding="utf-8")

    plain = report("n")

    def call(name):
        text = report(name)
        assert len(text.splitlines()) == len(plain.splitlines()), "a name made lines of its own"
        for line in text.splitlines():
            assert "<script" not in line and "<img" not in line and "<b>" not in line and "<!--" not in line, line
            assert "](http" not in line.replace("\\](", "") and printable(line), line
        for mark in ("\n# H", "\n> quote", "\n- item\n", "- - item", "- # H", "- > "):
            assert mark not in text, mark

    for name in (*MARKUP, *HOSTILE):
        yield repr(name), functools.partial(call, name)


@kind("names", "a class name in a table", "stays in its field")
def names_in_tables(tmp):
    for name in (*MARKUP, *HOSTILE):
        def call(name=name):
            lines = markdown_table([["class", "score"], [markdown_text(name), 1]]).splitlines()
            bars = lines[2].replace("\\\\", "").replace("\\|", "").count("|")
            return len(lines) == 3 and bars == 3 and printable(lines[2])
        yield repr(name), works(call, True)


@kind("names", "a class name that matplotlib takes for a formula", "drawn as it is")
def names_in_figures(tmp):
    for name in (r"$\frac$", "$x", "a$b$c", r"\$", r"$\undefined{$", "$$", "$_$", r"\\$x$"):
        def call(name=name):
            ax = plt.subplots()[1]
            draw_probs(ax, torch.tensor([.6, .4]), [name, "b"])
            draw_boxes(ax, torch.tensor([[0., 0., 5., 5.]]), torch.tensor([0]), names=[name])
            draw_mask(ax, torch.ones(4, 4, dtype=torch.uint8), ["background", name])
            ax.figure.savefig(io.BytesIO())
            plt.close(ax.figure)
        yield name, works(call)


@kind("names", "text that a terminal has no letters for", "printed with escapes, and goes on")
def ascii_terminal(tmp):
    for text in ("犬", "caf\udce9", "naïve", "\U0001f415"):
        def call(text=text):
            stream, kept = io.TextIOWrapper(io.BytesIO(), "ascii"), sys.stdout
            sys.stdout = stream
            try:
                assert exit_code(lambda: print(text)) == 0
            finally:
                sys.stdout = kept
        yield repr(text), works(call)


@kind("names", "an error about a name that breaks a line", "one line on standard error, exit code 2")
def errors_about_names(tmp):
    for name in HOSTILE:
        def call(name=name):
            def fail():
                raise InputError(f"{name}: no such file")
            stream, kept = io.StringIO(), sys.stderr
            sys.stderr = stream
            try:
                code = exit_code(fail)
            finally:
                sys.stderr = kept
            return code, stream.getvalue().count("\n"), printable(stream.getvalue()[:-1])
        yield repr(name), works(call, (2, 1, True))


def with_labels(tmp, change):
    "Minis whose training labels somebody changed, read."
    root = minis(tmp)
    path = root / FOLDERS["det"] / "train" / "labels.json"
    data = json.loads(path.read_text())
    given = change(data)
    path.write_text(given if isinstance(given, str) else json.dumps(data))
    return read_minis(root)


def whole(minis) -> bool:
    "Whether all boxes are finite and inside of their picture."
    for record in minis.records["det"]["train"]:
        sample = load_sample(record)
        h, w = sample.image.shape[-2:]
        for x1, y1, x2, y2 in record.boxes:
            if not (all(map(math.isfinite, (x1, y1, x2, y2))) and 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h):
                return False
    return True


@kind("labels", "a box of impossible numbers", "refused with the entry, or boxes that lie in their picture")
def odd_boxes(tmp):
    for bbox in ([10**400, 0, 5, 5], [0, 0, 10**400, 5], [-10**400, 0, 5, 5], [1e308, 1e308, 1e308, 1e308],
                 [-1e308, 0, 1e308, 9], [0, 0, 0, 0], [0, 0, -5, 5], [math.nan] * 4, [math.inf, 0, 1, 1],
                 ["1", "2", "3", "4"], ["a", 0, 1, 1], [[1], 0, 1, 1], [True, 0, 1, 1], [], [1, 2, 3],
                 [1, 2, 3, 4, 5], None, {}, "0 0 5 5", 7, [1e-320] * 4, [0, 0, 1e9, 1e9], [0.5, 0.5, 5.5, 5.5]):
        def change(data, bbox=bbox):
            data["annotations"][0]["bbox"] = bbox
        yield f"{bbox!r:.60}", refused_or(functools.partial(with_labels, tmp, change), whole)


@kind("labels", "ids of mixed kinds", "refused with the entry, or read as the same")
def odd_ids(tmp):
    for odd in ("1", 1.0, "x", 2**62, 10**30, -1, 1.5, True, None, "", " 1", [1], {"a": 1}, "٣"):
        for where in ("images", "annotations", "categories"):
            def change(data, odd=odd, where=where):
                key = {"images": "image_id", "categories": "category_id"}.get(where)
                was = data[where][0]["id"]
                data[where][0]["id"] = odd
                for note in data["annotations"]:
                    if key and note[key] == was:
                        note[key] = odd
            yield f"{where}: {odd!r}", refused_or(functools.partial(with_labels, tmp, change), whole)


@kind("labels", "a label file of another form", "refused with its name")
def odd_label_files(tmp):
    for text in ("[]", "null", "3", '"x"', "{}", '{"images": {}}', '{"images": []}', '{"images": [], "annotations": {}}', DEEP,
                 '{"a":' * 50_000,
                 '{"images": [1], "annotations": []}', '{"images": [{"id": 1}], "annotations": []}', "", "{", "\x00", "NaN",
                 '{"images": [], "annotations": [], "categories": 3}', "<html>", "\ufeff\ufeff{}", "1" * 5000):
        yield f"{text!r:.40}", refused(functools.partial(with_labels, tmp, lambda data, text=text: text), "mini_coco_det")


@kind("labels", "an impossible size of a picture", "refused with the entry, or boxes that lie in their picture")
def odd_sizes(tmp):
    for size in (0, -1, 10**400, 1.5, "32", "x", None, True, [32], 1e308, math.nan, 31, 10**6 + 1):
        def change(data, size=size):
            data["images"][0]["width"] = size
        yield f"width {size!r:.30}", refused_or(functools.partial(with_labels, tmp, change), whole)


@kind("labels", "an index of COCO with impossible entries", "refused")
def odd_index(tmp):
    good = {"categories": [{"id": 1, "name": "dog"}], "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 32}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]}
    assert coco_index(good)
    for part, key, value in (("images", "width", 10**400), ("images", "width", "x"), ("images", "id", [1]),
                             ("annotations", "bbox", [10**400] * 4), ("annotations", "image_id", 9), ("categories", "id", {}),
                             ("images", "flickr_url", 3), ("annotations", "bbox", 5)):
        bad = json.loads(json.dumps(good))
        bad[part][0][key] = value
        yield f"{part}: {key} {value!r:.30}", refused(functools.partial(coco_index, bad), "COCO index")


@kind("labels", "YAML that unfolds into billions of values", "refused with its name")
def yaml_bombs(tmp):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi")]
    for number, text in enumerate(("\n".join(lines) + "\nnames: *i", "names: &n [*n]", "names: [a]\ntrain: &x y\nval: *x",
                                   "[" * 5000,
                                   "names: {a: " * 3000, "names: !!python/object/apply:os.system [ls]")):
        path = tmp / f"{number}.yaml"
        path.write_text(text)
        yield f"{text!r:.40}", refused_or(functools.partial(load_yaml, path), lambda found: len(repr(found)) < 10_000)


@kind("labels", "XML that declares entities", "refused with its name")
def xml_entities(tmp):
    for text in ('<!DOCTYPE a [<!ENTITY b "x">]><annotation>&b;</annotation>',
                 '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
                 '<!ENTITY b "x"><annotation/>', "<annotation>", "", "{}"):
        yield f"{text!r:.40}", refused(functools.partial(voc_labels, text.encode(), "a.xml"), "a.xml")


@kind("labels", "text in an encoding that nobody can tell", "refused with its name, or read rightly")
def odd_encodings(tmp):
    for number, raw in enumerate((b"\xff\xfea", b"\x00\x00\x00", bytes(range(256)), "犬猫狗".encode("gb18030"),
                                  "é".encode("cp1252"), b"\xef\xbb\xbfa",
                                  "a".encode("utf-16"), "a".encode("utf-32"), b"\x1f\x8b\x08", b"PK\x03\x04", b"\xc3")):
        path = tmp / f"{number}.txt"
        path.write_bytes(raw)
        yield f"{raw!r:.30}", refused_or(functools.partial(read_text, path), lambda text: text in ("é", "a", "\ufeffa", "Ã"))


@kind("labels", "JSON that is nested a hundred thousand times", "counts as damaged")
def nested(tmp):
    for text in (DEEP, '{"files":' * 100_000, '[{"a":' * 50_000):
        (tmp / "manifest.json").write_text(text)
        yield f"manifest.json {text[:8]}..", works(lambda: read_manifest(tmp) is None, True)
        (tmp / "labels.json").write_text(text)
        yield f"labels.json {text[:8]}..", refused(lambda: read_json(tmp / "labels.json"), "labels.json")
        yield f"text {text[:8]}..", refused(functools.partial(json_value, text), error=ValueError)


@kind("labels", "a manifest.json that names no file, or is another program's", "counts as none")
def odd_manifests(tmp):
    for text in ('{"files": {}}', "{}", "[]", "null", "3", '{"files": null}', '{"files": ["a"]}', '{"files": {"a": 3}}',
                 '{"files": {"a": {"b": {}}}}',
                 '{"files": {"a": "b"}, "notes": 3}', '{"files": {"a": "b"}, "leaks": []}',
                 '{"files": {"a": "b"}, "classes": {"det": [3]}}',
                 '{"files": {"a": "b"}, "max_side": "x"}', '{"files": {"a": "b"}, "origin": {}}',
                 '{"name": "app", "icons": []}', "", "{"):
        (tmp / "manifest.json").write_text(text)
        yield text or "empty", works(lambda: read_manifest(tmp) is None, True)


def picture(size=(24, 16), mode="RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


@kind("pictures", "a picture that was cut", "refused with its name")
def cut_pictures(tmp):
    for kind_ in ("PNG", "JPEG", "BMP", "WEBP"):
        Image.open(io.BytesIO(picture((64, 48)))).save(out := io.BytesIO(), kind_)
        data = out.getvalue()
        for share in (0, .01, .1, .5):
            path = tmp / f"{kind_}{share}.png"
            path.write_bytes(data[:int(len(data) * share)])
            yield f"{kind_}, {share:.0%} of it", refused(functools.partial(read_image, path), path.name)


@kind("pictures", "a picture with a changed byte", "refused with its name, or a picture")
def changed_pictures(tmp):
    rng = random.Random(0)
    for kind_ in ("PNG", "JPEG"):
        Image.open(io.BytesIO(picture((32, 24)))).save(out := io.BytesIO(), kind_)
        for number in range(40):
            data, path = bytearray(out.getvalue()), tmp / f"{kind_}{number}"
            place = rng.randrange(min(len(data), 200)) if number < 20 else rng.randrange(len(data))
            data[place] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            call = functools.partial(read_image, path)
            yield f"{kind_}, byte {place}", refused_or(call, lambda found: found.ndim == 3 and found.shape[0] == 3)


@kind("pictures", "a small file with too many pixels", "refused with its name, without decoding it")
def many_pixels(tmp):
    for mode, size in (("1", (9000, 9000)), ("L", (8001, 8001)), ("1", (1, 65_000_000)), ("P", (8500, 8500))):
        path = tmp / f"{mode}{size[0]}.png"
        Image.new(mode, size).save(path)
        yield f"PNG {mode}, {size[0]} x {size[1]}", refused(functools.partial(read_image, path), path.name)
        yield f"mask {mode}, {size[0]} x {size[1]}", refused(functools.partial(read_mask, path), path.name)
    for kind_, offset in (("BMP", 18), ("GIF", 6)):  # a header that says so, and hardly any data
        Image.new("P", (8, 8)).save(out := io.BytesIO(), kind_)
        data = bytearray(out.getvalue())
        size = b"\xff\x7f\0\0\xff\x7f\0\0" if kind_ == "BMP" else b"\xff\xff\xff\xff"
        data[offset:offset + len(size)] = size
        path = tmp / f"lies.{kind_.lower()}"
        path.write_bytes(data)
        yield f"a {kind_} whose header lies", refused(functools.partial(read_image, path), path.name)


def put(path, what):
    "Something else in place of a file."
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # its name may be too long otherwise
        try:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        finally:
            os.chdir(here)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "link to a pipe":
        os.mkfifo(path.with_name(".pipe")) if not path.with_name(".pipe").exists() else None
        path.symlink_to(".pipe")
    elif what == "ring":
        path.symlink_to(path.name)
    else:
        path.symlink_to("gone")


@kind("pictures", "a pipe, a device or a link to nothing in place of a file", "refused with its name, without waiting")
def no_files(tmp):
    for what in ("pipe", "socket", "folder", "device", "link to a pipe", "ring", "link to nothing"):
        for number, reader in enumerate((read_image, read_mask, read_json, read_text)):
            path = tmp / f"{what.replace(' ', '_')}{number}.png"
            put(path, what)
            yield f"{what}, {reader.__name__}", refused(functools.partial(reader, path), path.name)
        for task, pattern in (("cls", "*.jpg"), ("seg", "*.png"), ("det", "labels.json"), ("det", "*.jpg")):
            def call(what=what, task=task, pattern=pattern):
                root = minis(tmp)
                path = first(root / FOLDERS[task], pattern)
                put(path, what)
                try:
                    found = read_minis(root)
                except InputError as error:
                    assert printable(str(error))
                    return True
                known = [r.path for r in found.records[task]["train"]] + [r.mask_path for r in found.records[task]["train"]]
                return bool(checked(root)) if str(path) in known else True  # what is listed fails when it is decoded
            yield f"{what}, {pattern} of {FOLDERS[task]}", works(call, True)


@kind("pictures", "a mask whose values may mean something else", "refused with its name")
def odd_masks(tmp):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    for name, image in (("colours.png", Image.fromarray(noise)), ("photo.jpg", Image.fromarray(noise)),
                        ("deep.png", Image.fromarray(rng.integers(256, 999, (8, 8)).astype(np.int32))),
                        ("clear.png", Image.fromarray(np.dstack([noise, noise[..., 0]]))),
                        ("float.tiff", Image.fromarray(noise[..., 0] / 7.)),
                        ("two bits.png", Image.new("P", (8, 8)))):
        image.save(tmp / name, **({"bits": 2} if name == "two bits.png" else {}))
        call = functools.partial(read_mask, tmp / name)
        yield name, refused(call, name) if name != "two bits.png" else refused_or(call, lambda found: not found.any())


assert all(not printable(name) and printable(one_line(name)) for name in HOSTILE)
