"""Pictures that an EXIF tag turns, masks stored in every way, files that cannot be read: through the public functions only."""
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unified_onehead.core.files import InputError
from unified_onehead.core.images import read_image, read_mask
from unified_onehead.core.viz import voc_palette
from unified_onehead.data.records import Record, load_sample
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.data.check import check_minis
from unified_onehead.data.prepare import prepare

UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    root = make_synthetic(tmp_path_factory.mktemp("minis") / "data", n_train=20, n_val=20, side=48)
    for path in [*root.rglob("*.jpg"), *root.rglob("*.JPEG")]:  # no compression in the way of comparing pixels
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        pixels.save(path, "PNG")
    return root


@pytest.fixture
def minis(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "data")


def lay(path, tag, lie=True):
    "Store a picture as a camera does: the pixels lying, and the tag that makes them upright (or the tag alone)."
    back = {6: 8, 8: 6}.get(tag, tag)
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = tag
    (pixels.transpose(UPRIGHT[back]) if lie else pixels).save(path, "PNG", exif=exif)


def oblong(root, task, number=0):
    "A labelled training picture that is not square."
    records = read_minis(root).records[task]["train"]
    labelled = [r for r in records if r.boxes or r.mask_path or task == "cls"]
    return [r for r in labelled if len(set(load_sample(r).original)) == 2][number]


def same_pixels(records, others):
    for one, other in zip(records, others, strict=True):
        before, after = load_sample(one), load_sample(other)
        assert before.image.equal(after.image) and before.boxes.equal(after.boxes), other.path
        assert before.mask is None or before.mask.equal(after.mask), other.path


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_pictures_from_a_camera_are_read_as_the_upright_ones(minis, pristine, tag):
    for task in ("det", "seg", "cls"):
        lay(oblong(pristine, task).path.replace(str(pristine), str(minis)), tag)
    read, wanted = read_minis(minis), read_minis(pristine)
    for task in ("det", "seg", "cls"):
        same_pixels(wanted.records[task]["train"], read.records[task]["train"])
    report = check_minis(minis)
    assert report.ok and not [w for w in report.warnings if "EXIF" in w], report.text()


@pytest.mark.parametrize("tag", [5, 6, 8])
def test_labels_drawn_on_stored_pixels_keep_their_pixels_and_the_check_counts_them(minis, pristine, tag):
    for task, number in (("det", 0), ("seg", 0), ("seg", 1)):
        lay(oblong(pristine, task, number).path.replace(str(pristine), str(minis)), tag, lie=False)
    read, wanted = read_minis(minis), read_minis(pristine)
    for task in ("det", "seg"):
        same_pixels(wanted.records[task]["train"], read.records[task]["train"])
    report = check_minis(minis)
    assert report.ok, report.text()
    assert [w for w in report.warnings if "EXIF" in w] == [
        f"{task}: {number} labelled pictures are used as stored, as they were labelled, although an EXIF tag turns them on a "
        "screen"
        for task, number in (("segmentation", 2), ("detection", 1))]


@pytest.mark.parametrize("tag", [2, 3, 4])
@pytest.mark.parametrize("task", ["det", "seg"])
def test_what_no_size_can_tell_is_refused_by_name(minis, pristine, tag, task):
    record = oblong(pristine, task)
    path = record.path.replace(str(pristine), str(minis))
    lay(path, tag)
    report = check_minis(minis)
    assert len(report.problems) == 1, report.problems
    assert report.problems[0].startswith(f"{path}: an EXIF tag (orientation {tag})")
    assert "layout=exif=upright or layout=exif=stored" in report.problems[0]
    with pytest.raises(InputError, match="upright, without the tag"):
        prepare(minis, minis.parent / "clean")
    found = next(r for r in read_minis(minis).records[task]["train"] if r.path == path)
    with pytest.raises(InputError, match="nothing says"):
        load_sample(found)
    assert load_sample(replace(found, upright=True)).image.equal(load_sample(record).image)
    assert not load_sample(replace(found, upright=False)).image.equal(load_sample(record).image)


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_a_square_picture_or_one_without_a_size_is_refused(tmp_path, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    for size, told in (((30, 30), (30, 30)), ((30, 20), None), ((30, 20), (31, 20))):
        Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
        boxed = Record("det", str(tmp_path / "a.jpg"), 1, [[0., 0., 9., 9.]], [0], [False], size=told)
        with pytest.raises(InputError, match="a.jpg"):
            load_sample(boxed)
        bare = load_sample(replace(boxed, boxes=[], labels=[], crowd=[], size=None))  # nothing labelled: as people see it
        assert bare.original == (size if tag in (6, 8) else size[::-1])


def test_training_and_prediction_see_a_class_photograph_the_same_way(minis, pristine):
    for number, tag in enumerate(range(2, 9)):
        record = read_minis(pristine).records["cls"]["train"][number]
        lay(record.path.replace(str(pristine), str(minis)), tag)
    read, wanted = (read_minis(root).records["cls"]["train"] for root in (minis, pristine))
    same_pixels(wanted, read)
    for one in read[:7]:
        seen = load_sample(Record("det", one.path, 1, upright=True))  # as Predictor reads a path
        assert seen.image.equal(load_sample(one).image) and seen.image.equal(read_image(one.path))


@pytest.mark.parametrize("side", [0, 40])
def test_a_prepared_set_keeps_every_picture_its_way_up(minis, pristine, side):
    for task in ("det", "seg", "cls"):
        for number, (tag, lie) in enumerate(((6, True), (8, True), (5, False) if task != "cls" else (3, True))):
            lay(oblong(pristine, task, number).path.replace(str(pristine), str(minis)), tag, lie)
    wanted = read_minis(prepare(pristine, minis.parent / "wanted", max_side=side))
    read = read_minis(prepare(minis, minis.parent / "clean", max_side=side))
    for task in ("det", "seg", "cls"):
        same_pixels(wanted.records[task]["train"], read.records[task]["train"])
    again = read_minis(prepare(minis.parent / "clean", minis.parent / "twice"))
    for task in ("det", "seg", "cls"):
        same_pixels(read.records[task]["train"], again.records[task]["train"])
    assert check_minis(minis.parent / "clean").ok
    tagged = [p for p in (minis.parent / "clean").rglob("*.*") if p.suffix in (".jpg", ".JPEG") and Image.open(p).getexif()]
    assert len(tagged) == (0 if side else 9), "a copy keeps its tag, what is scaled has none"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on broken EXIF
def test_tags_that_are_none_turn_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        for name in ("a.png", "a.webp"):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif, lossless=True)
            boxed = Record("det", str(tmp_path / name), 1, [[0., 0., 9., 9.]], [0], [False])
            assert (load_sample(boxed).image.permute(1, 2, 0).numpy() == pixels).all(), (value, name)
    for block in (b"Exif\0\0", b"Exif\0\0II*\0" + b"\xff" * 60, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"):
        Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=block)
        assert read_image(str(tmp_path / "a.jpg")).shape[0] == 3, block


def mask_of(root):
    return next((root / "mini_voc_seg/train/SegmentationClass").glob("*.png"))


def write(path, ids, how):
    "The same ids, stored in another way."
    voc = voc_palette()
    voc[255] = 224, 224, 192
    text = PngInfo()
    text.add_text("history", "x" * 2_000_000)
    image = {"16 bits": lambda: Image.fromarray(ids.astype(np.uint16)),
             "grey in colours": lambda: Image.fromarray(np.stack([ids] * 3, 2)),
             "voc colours": lambda: Image.fromarray(voc[ids]), "opaque": lambda: Image.fromarray(voc[ids]).convert("RGBA"),
             "grey": lambda: Image.fromarray(ids), "long text": lambda: Image.fromarray(ids)}.get(how)
    if image:
        return image().save(path, "PNG", pnginfo=text if how == "long text" else None)
    palette = Image.fromarray(ids)
    palette.putpalette(np.random.default_rng(0).integers(64, 256, 768).tolist())  # colours of nobody
    palette.save(path, "PNG", transparency=0)


@pytest.mark.parametrize("how", ["grey", "16 bits", "grey in colours", "voc colours", "opaque", "long text",
                                 "palette, transparent"])
def test_masks_stored_in_any_plain_way_give_the_same_ids(minis, pristine, how):
    path = mask_of(minis)
    ids = read_mask(str(path)).numpy()
    ids[0, :2] = 255
    write(path, ids, how)
    assert read_mask(str(path)).equal(torch.from_numpy(ids))
    assert check_minis(minis, tasks=("seg",)).ok
    for side in (0, 40):
        clean = mask_of(prepare(minis, minis.parent / f"clean{side}", max_side=side))
        assert set(read_mask(str(clean)).unique().tolist()) <= set(np.unique(ids).tolist())


def spoil(path, how):
    ids = read_mask(str(path)).numpy()
    ids[0, 0] = 3
    exif = Image.Exif()
    exif[0x0112] = 6 if how == "turned" else 3
    rgb = np.stack([ids] * 3, 2)
    rgb[1, 2] = 200, 30, 30
    deep = ids.astype(np.uint16)
    deep[0, 0] = 300
    packed = Image.fromarray(np.minimum(ids, 1))
    packed.putpalette([0, 0, 0, 192, 128, 128])
    clear = Image.fromarray(ids).convert("LA")
    clear.putpixel((1, 1), (3, 0))
    save = {"jpeg": lambda: Image.fromarray(ids).save(path, "JPEG"), "webp": lambda: Image.fromarray(rgb).save(path, "WEBP"),
            "colour": lambda: Image.fromarray(rgb).save(path), "value 300": lambda: Image.fromarray(deep).save(path),
            "border 65535": lambda: Image.fromarray(np.where(deep == 300, 65535, deep).astype(np.uint16)).save(path),
            "turned": lambda: Image.fromarray(ids).save(path, exif=exif),
            "upside down": lambda: Image.fromarray(ids).save(path, exif=exif),
            "packed palette": lambda: packed.save(path), "clear pixel": lambda: clear.save(path)}
    save[how]()


@pytest.mark.parametrize(("how", "words"), [
    ("jpeg", "it is a JPEG, whose compression"), ("webp", "it is a WEBP, whose compression"),
    ("colour", r"the pixel (2, 1) has the colour (200, 30, 30)"), ("value 300", "it holds the value 300"),
    ("border 65535", "it holds the value 65535"), ("turned", "an EXIF tag (orientation 6)"),
    ("upside down", "an EXIF tag (orientation 3)"), ("packed palette", "the index 1 in the colour of id 15"),
    ("clear pixel", "some of its pixels are transparent")])
def test_masks_that_might_be_read_wrongly_are_refused_by_name(minis, how, words):
    path = mask_of(minis)
    spoil(path, how)
    report = check_minis(minis, tasks=("seg",))
    assert len(report.problems) == 1 and report.problems[0].startswith(f"{path}: a mask must hold one class id"), report.problems
    assert words in report.problems[0]
    with pytest.raises(InputError, match="one class id per pixel"):
        prepare(minis, minis.parent / "clean")


def victims(root):
    "A picture and a mask."
    return [Path(read_minis(root).records["det"]["val"][0].path), mask_of(root)]


@pytest.mark.parametrize("how", ["empty", "cut", "text"])
def test_broken_content_says_remove(minis, how):
    for path in victims(minis):
        path.write_bytes({"empty": b"", "cut": path.read_bytes()[:-40], "text": b"Dear all, the data is elsewhere."}[how])
    problems = check_minis(minis).problems
    assert len([p for p in problems if "cannot be decoded" in p and "download it again, or remove it" in p]) == 2, problems


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO, errno.ESTALE])
def test_a_disk_that_refuses_says_try_again_and_never_remove(minis, code):
    one = victims(minis)[1]
    read = Path.read_bytes

    def refuse(path):
        if path == one:
            raise OSError(code, os.strerror(code))
        return read(path)

    with mock.patch.object(Path, "read_bytes", refuse):
        problems = check_minis(minis, tasks=("seg",)).problems
        assert len(problems) == 1 and problems[0].startswith(f"{one}: cannot be read now ({os.strerror(code)})"), problems
        assert "try again" in problems[0] and "remove" not in problems[0]
        with pytest.raises(InputError, match="cannot be read now"):
            prepare(minis, minis.parent / "clean")


@pytest.mark.parametrize("how", ["link", "ring", "folder", "pipe"])
def test_what_is_no_file_is_named(minis, how):
    path = victims(minis)[1]
    path.unlink()
    {"link": lambda: path.symlink_to("/content/drive/MyDrive/mask.png"), "ring": lambda: path.symlink_to(path.name),
     "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[how]()
    problems = check_minis(minis, tasks=("seg",)).problems
    words = {"link": "a link to /content/drive/MyDrive/mask.png, which is not there", "ring": "a link to"}.get(how, "not a file")
    assert len(problems) == 1 and problems[0].startswith(f"{path}: ") and words in problems[0], problems
    assert "remove" not in problems[0]
    with pytest.raises(InputError, match=path.name):
        prepare(minis, minis.parent / "clean")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_files_are_read_or_refused_by_name_and_nothing_else(tmp_path):
    random = np.random.default_rng(0)
    exif, pixels, seeds = Image.Exif(), Image.fromarray(random.integers(0, 256, (20, 15, 3), dtype=np.uint8)), []
    exif[0x0112] = 6
    for mode, suffix in (("RGB", "jpg"), ("RGB", "png"), ("RGB", "webp"), ("P", "png"), ("L", "png"), ("1", "png"),
                         ("RGB", "bmp")):
        pixels.convert(mode).save(tmp_path / f"a.{suffix}", **({} if suffix == "bmp" else dict(exif=exif)))
        seeds.append((tmp_path / f"a.{suffix}").read_bytes())
    path, ends = tmp_path / "mutated.png", {"read": 0, "refused": 0}
    for number in range(400):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(1 + number % 4):
            data[int(len(data) * random.random() ** (1 + 3 * (number % 2)))] = random.integers(256)
        path.write_bytes(bytes(data[:random.integers(len(data))] if number % 5 == 0 else data))
        for read in (read_image, read_mask):
            try:
                assert read(str(path)).dtype == torch.uint8
                ends["read"] += 1
            except InputError as error:
                assert str(error).startswith(f"{path}: ") and "object at" not in str(error)
                ends["refused"] += 1
    assert min(ends.values()) > 50, ends
