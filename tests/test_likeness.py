"""What counts as one picture in both splits: the same bytes or an agreeing look, and never a name."""
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from unified_onehead.core.files import InputError
from unified_onehead.data import likeness
from unified_onehead.data.likeness import find_leaks, leak_pairs, shared_images
from unified_onehead.data.records import Record
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import make_synthetic

DOWN, ACROSS = np.mgrid[0:90, 0:120] / 120


def soft(rng, levels, base=20):
    "A soft texture of so many levels around a dark grey."
    noise = base + levels * rng.standard_normal((9, 12)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC))


KINDS = {  # pictures of a kind differ, and no name says so
    "scene": lambda rng: soft(rng, 45, 128), "dim texture": lambda rng: soft(rng, 4),
    "very dim texture": lambda rng: soft(rng, 2),
    "bright texture": lambda rng: soft(rng, 3, 240), "sensor noise": lambda rng: np.abs(2 * rng.standard_normal((90, 120))),
    "dim gradient": lambda rng: 25 + rng.uniform(3, 9) * DOWN,
    "gradient": lambda rng: rng.uniform(0, 40) + rng.uniform(120, 200) * ACROSS,
    "stripes": lambda rng: 30 + 15 * np.sign(np.sin(rng.uniform(60, 300) * ACROSS)),
    "almost black": lambda rng: np.where(rng.random((90, 120)) < .001, 40, 0)}


def save(pixels, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).clip(0, 255).round().astype(np.uint8)).convert("RGB").save(path, **how)
    return Record("cls", str(path), 1)


def draw(folder, kind, count, seed, suffix="jpg"):
    rng, how = np.random.default_rng(seed), {"quality": 90} if suffix == "jpg" else {}
    return [save(KINDS[kind](rng), folder / f"{k:03d}.{suffix}", **how) for k in range(count)]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_name_is_no_evidence(tmp_path, kind, suffix):
    train, val = draw(tmp_path / "train", kind, 24, 1, suffix), draw(tmp_path / "val", kind, 24, 2, suffix)
    assert [leak for leak in leak_pairs(train, val) if leak.why != "same bytes"] == [], "a few levels may come out the same"


@pytest.mark.parametrize("kind", ["scene", "dim texture", "very dim texture", "bright texture"])
def test_copies_are_found_under_their_name(tmp_path, kind):
    val = draw(tmp_path / "val", kind, 8, 1, "png")
    train = draw(tmp_path / "train", kind, 8, 2, "png")
    ways = [dict(quality=75), dict(quality=60), dict(), dict(quality=85)]
    for k, how in enumerate(ways):
        with Image.open(val[k].path) as image:
            copy = image if k < 2 else image.resize((80, 60))
            copy.save(train[k].path, format="JPEG" if how else "PNG", **how)
    shutil.copy(val[6].path, Path(train[6].path).with_name("renamed.png"))
    train.append(Record("cls", str(Path(train[6].path).with_name("renamed.png")), 9))
    found = leak_pairs(train, val)
    assert [(leak.train, leak.val) for leak in found] == [*zip(train[:4], val[:4]), (train[8], val[6])]
    assert [leak.why for leak in found] == ["the same picture, saved anew"] * 4 + ["same bytes"]
    assert found[4].text() == "renamed.png (train) is 006.png (val): same bytes"
    assert found[0].text() == "000.png (train) is 000.png (val): the same picture, saved anew"
    assert find_leaks(train, val) == [leak.train for leak in found]


@pytest.mark.parametrize("change", ["broken", "empty", "text", "mirrored", "squashed", "brighter"])
def test_another_picture_or_none_under_one_name(tmp_path, change):
    val = draw(tmp_path / "val", "scene", 1, 1)
    path = tmp_path / "train" / "000.jpg"
    path.parent.mkdir()
    with Image.open(val[0].path) as image:
        other = {"mirrored": lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "squashed": lambda: image.resize((90, 90)),
                 "brighter": lambda: image.point(lambda v: v + 30)}.get(change)
        if other:
            other().save(path)
        else:
            path.write_bytes({"broken": Path(val[0].path).read_bytes()[:300], "empty": b"", "text": b"no picture"}[change])
    assert leak_pairs([Record("cls", str(path), 1)], val) == []


def test_class_folders_that_use_a_name_again_cost_one_look_each(tmp_path):
    train, val = ([save(soft(np.random.default_rng([part, k]), 40, 120), tmp_path / str(part) / f"class{k}" / "1.png")
                   for k in range(50)] for part in (0, 1))
    with mock.patch.object(likeness, "look", side_effect=likeness.look) as asked:
        assert leak_pairs(train, val) == []
    assert asked.call_count == 100


@pytest.mark.parametrize("where", ["train", "val"])
def test_what_cannot_be_read_is_named(tmp_path, where):
    sets = {name: draw(tmp_path / name, "scene", 2, k) for k, name in enumerate(("train", "val"))}
    (tmp_path / where / "gone.jpg").symlink_to(tmp_path / "drive" / "gone.jpg")
    sets[where].append(Record("cls", str(tmp_path / where / "gone.jpg"), 3))
    with pytest.raises(InputError, match=r"gone\.jpg: a link to .*not there"):
        find_leaks(sets["train"], sets["val"])
    sets[where][-1] = Record("cls", str(tmp_path / where / "lost.jpg"), 3)
    with pytest.raises(InputError, match=r"lost\.jpg: no such image"):
        find_leaks(sets["train"], sets["val"])
    sets[where][-1] = Record("cls", str(tmp_path / where / "shaky.jpg"), 3)
    stat = Path.stat

    def refuses(path, **more):
        if path.name == "shaky.jpg":
            raise OSError(107, "Transport endpoint is not connected")
        return stat(path, **more)
    with mock.patch.object(Path, "stat", refuses), pytest.raises(InputError, match=r"shaky\.jpg: cannot be read now.*try again"):
        find_leaks(sets["train"], sets["val"])


def test_dim_textures_stay_in_train(tmp_path):
    root = make_synthetic(tmp_path / "minis", n_train=24, n_val=24, side=64)
    folders = [sorted((root / "imagenette_160" / split).iterdir()) for split in ("train", "val")]
    for part, folder in enumerate(folders):
        for k, place in enumerate(folder):
            for number, path in enumerate(sorted(place.iterdir())):
                path.unlink()
                save(soft(np.random.default_rng([part, k, number]), 4), place / f"{number}.jpg", quality=90)
    minis = read_minis(root)
    assert minis.leaks["cls"] == [] and len(minis.records["cls"]["train"]) == 24


def test_pairs_across_sets_do_not_need_names(tmp_path):
    one, two = draw(tmp_path / "a", "scene", 6, 1), draw(tmp_path / "b", "scene", 6, 2)
    with Image.open(one[2].path) as image:
        image.resize((60, 45)).save(tmp_path / "b" / "new.jpg", quality=80)
    two.append(Record("det", str(tmp_path / "b" / "new.jpg"), 7))
    assert shared_images({"a": one, "b": two}) == [(one[2].path, two[6].path)] and shared_images({"a": one + two}) == []


@pytest.mark.parametrize("kind", ["dim texture", "sensor noise", "dim gradient", "almost black", "stripes"])
def test_pictures_that_show_little_are_not_all_one(tmp_path, kind):
    sets = {name: draw(tmp_path / name, kind, 15, seed, "png") for seed, name in enumerate("abc")}
    hold = [(r.path, Path(r.path).read_bytes()) for part in sets.values() for r in part]
    twice = {pair for pair in shared_images(sets) if dict(hold)[pair[0]] != dict(hold)[pair[1]]}
    assert twice == set()
    shutil.copy(sets["a"][3].path, sets["c"][5].path)
    assert (sets["a"][3].path, sets["c"][5].path) in shared_images(sets), "but for the same bytes"


def test_twenty_thousand_looks_are_compared_in_seconds():
    rng, count = np.random.default_rng(0), 20_000
    bits, thumbs = rng.random((count, 63)) < .5, rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    bits[-100:], thumbs[-100:] = bits[:100], thumbs[:100]
    looks = iter([likeness.Look(b, t, (9, 9), 63) for b, t in zip(bits, thumbs)])
    sets = {half: [Record("cls", f"{half}/{k}", k) for k in range(count // 2)] for half in (0, 1)}
    with mock.patch.object(likeness, "look", lambda path: next(looks)):
        start = time.process_time()
        found = shared_images(sets)
    assert found == [(f"0/{k}", f"1/{count // 2 - 100 + k}") for k in range(100)]
    assert time.process_time() - start < 30, "a few seconds; the bound is for a busy machine"


def test_a_film_of_a_still_camera_does_not_fill_the_memory(tmp_path):
    frames = [likeness.look(draw(tmp_path, "scene", 1, 1)[0].path)] * 1000
    looks, sets = iter(frames), {half: [Record("cls", f"{half}/{k}", k) for k in range(500)] for half in "ab"}
    with mock.patch.object(likeness, "look", lambda path: next(looks)):
        found = shared_images(sets)
    assert {second for _, second in found} == {r.path for r in sets["b"]} and len(found) == likeness.PARTNERS * 500


@pytest.mark.skipif("COURSE_MINIS" not in os.environ, reason="COURSE_MINIS names no folder with photographs")
def test_photographs_of_the_course():
    minis = read_minis(os.environ["COURSE_MINIS"])
    assert {task: len(names) for task, names in minis.leaks.items()} == {"seg": 0, "det": 5, "cls": 0}
    assert shared_images({(t, s): part for t, both in minis.records.items() for s, part in both.items()}) == []
