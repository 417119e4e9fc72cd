"""Predicting as users do: videos, lists with bad items, the command line, a light import."""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unified_onehead import InputError, Predictor, make_synthetic, preset, replace_fields
from unified_onehead.deploy.sources import pictures
from unified_onehead.learn.checkpoint import save_model
from unified_onehead.model.backbone import build_backbone
from unified_onehead.model.net import OneHead, class_counts

NAMES = {"seg": ["background", "cat"], "det": ["cat", "dog"], "cls": ["tench", "church", "parachute"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    net = OneHead(build_backbone()[0], class_counts(NAMES), 24)
    save_model(folder / "model.pt", net, replace_fields(preset("smoke"), width=24), NAMES)
    make_synthetic(folder / "minis", seed=1, n_train=2, n_val=10, side=64)
    return folder


@pytest.fixture(scope="module")
def model(place):
    return Predictor(place / "model.pt", "cpu")


def fresh(*words, cwd):
    "A new process."
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "PYTHONPATH": root})


def write_video(path, frames):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)


def test_a_video_is_answered_frame_by_frame(model, tmp_path):
    shades = [np.full((48, 64, 3), shade, np.uint8) for shade in (40, 120, 200)]
    write_video(tmp_path / "clip.mp4", shades)
    found = model(tmp_path / "clip.mp4", batch=2)
    assert [r.frame for r in found] == [0, 1, 2] and {r.path for r in found} == {str(tmp_path / "clip.mp4")}
    assert [abs(int(r.image.mean()) - shade) < 6 for r, shade in zip(found, (40, 120, 200))] == [True] * 3, "in order, RGB"
    assert [r.stem for r in found] == ["clip_000000", "clip_000001", "clip_000002"]
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:20])  # not even its kind
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    read = list(pictures([tmp_path / "cut.mp4", tmp_path / "one.png"]))
    assert isinstance(read[0], InputError) and "cut.mp4: cannot be read as a video" in str(read[0])
    assert read[-1].name.endswith("one.png"), "and the next is answered"
    whole = (tmp_path / "clip.mp4").read_bytes()
    for length in range(0, len(whole), 100):  # wherever it is cut: frames or an error, never silence
        (tmp_path / "cut.mp4").write_bytes(whole[:length])
        *read, last = pictures([tmp_path / "cut.mp4", tmp_path / "one.png"])
        assert read and last.name.endswith("one.png"), length
        assert len(read) == 3 or isinstance(read[-1], InputError) and "cut.mp4: " in str(read[-1]), length


@pytest.mark.parametrize("library", [True, False])
def test_a_bad_video_in_a_folder_ends_nothing(monkeypatch, tmp_path, library):
    if library:
        pytest.importorskip("av")
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "b.mp4").write_bytes(b"film")
    for name in ("a.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    first, told, last = pictures(tmp_path)
    assert first.name.endswith("a.png") and last.name.endswith("c.png")
    assert ("cannot be read as a video" if library else 'pip install "unified-onehead[video]"') in str(told)


def test_a_video_has_an_address(monkeypatch, tmp_path):
    from unified_onehead.deploy import sources
    write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), 90, np.uint8)] * 2)
    monkeypatch.setattr(sources, "fetched", lambda url: (tmp_path / "clip.mp4").read_bytes())
    found = list(pictures("https://example.org/clip.mp4?key=1"))
    assert [(p.name, p.frame) for p in found] == [("https://example.org/clip.mp4?key=1", k) for k in (0, 1)]


def test_bad_items_in_a_list_of_two_hundred(model, place):
    photo = next((place / "minis/mini_coco_det/val").rglob("*.jpg"))
    given = [photo] * 200
    given[7], given[100], given[199] = photo.with_name("gone.jpg"), np.zeros((4, 4), float), b"torn"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = model(given)
    assert [r.index for r in found] == [k for k in range(200) if k not in (7, 100, 199)]
    told = " ".join(str(w.message) for w in said)
    assert len(said) == 3 and "gone.jpg" in told and "item 100" in told and "item 199" in told


def test_nothing_but_bad_items(model):
    with pytest.warns(UserWarning, match="left out: item 0"):
        assert model([b""]) == []
    with pytest.raises(InputError, match="bytes: cannot be decoded"):
        model(b"")


def test_the_first_answer_needs_no_training_library(place):
    photo = next((place / "minis/mini_coco_det/val").rglob("*.jpg"))
    code = ("import sys; from unified_onehead import Predictor; r = Predictor('model.pt', 'cpu')(sys.argv[1]); r.save('.')\n"
            "print(sorted({'accelerate', 'pycocotools', 'psutil', 'matplotlib', 'requests', 'onnx', 'onnxruntime', 'gradio', "
            "'fastapi', 'huggingface_hub', 'av'} & set(sys.modules)))")
    done = fresh("-c", code, photo, cwd=place)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_command_answers_a_folder(place, tmp_path):
    photos = place / "minis/mini_coco_det/val"
    out = tmp_path / "answers"
    done = fresh("-m", "unified_onehead", "predict", photos, "--weights", place / "model.pt", "--out", out, "--save-json",
                 "--save-masks", "--save-csv", "--device", "cpu", "--conf", "0.02", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    count = len(list(photos.rglob("*.jpg")))
    assert f"{count} pictures answered, on cpu" in done.stdout and "images/s" in done.stderr
    assert len(list(out.glob("*.jpg"))) == len(list((out / "masks").glob("*.png"))) == count
    coco = pytest.importorskip("pycocotools.coco").COCO
    boxes = coco(str(out / "boxes.json"))
    assert [c["name"] for c in boxes.loadCats(boxes.getCatIds())] == NAMES["det"] and len(boxes.imgs) == count
    json.loads((out / "mask_classes.json").read_text())


def test_the_command_writes_over_nothing_and_reads_no_answers(place, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted((place / "minis/mini_coco_det/val").rglob("*.jpg"))[:2]:
        (photos / photo.name).write_bytes(photo.read_bytes())
    before = {p.name: p.read_bytes() for p in photos.iterdir()}
    words = ["-m", "unified_onehead", "predict", photos, "--weights", place / "model.pt", "--device", "cpu", "--quiet", "--out"]
    refused = fresh(*words, photos, cwd=tmp_path)
    assert refused.returncode == 2 and "Name a new folder with --out" in refused.stderr
    assert {p.name: p.read_bytes() for p in photos.iterdir()} == before
    for _ in range(2):
        done = fresh(*words, photos / "answers", cwd=tmp_path)
        assert done.returncode == 0 and "2 pictures answered" in done.stdout, done.stdout + done.stderr
    assert {p.name: p.read_bytes() for p in photos.iterdir() if p.is_file()} == before


def test_a_converted_network_that_was_damaged_is_made_anew(place, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photo = next((place / "minis/mini_coco_det/val").rglob("*.jpg"))
    first = Predictor(place / "model.pt", "cpu", "onnx")(photo)
    kept, = (tmp_path / "cache").rglob("*.onnx")
    kept.write_bytes(kept.read_bytes()[:1000])
    again = Predictor(place / "model.pt", "cpu", "onnx")(photo)
    assert "It is made anew" in capsys.readouterr().err and np.array_equal(first.mask, again.mask)
    with pytest.raises(InputError, match="Leave backend=torch out"):
        Predictor(kept, "cpu", "torch")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="Set XDG_CACHE_HOME"):
        Predictor(place / "model.pt", "cpu", "onnx")


@pytest.mark.parametrize("words, told", [
    (["predict", "nothing.jpg", "--weights", "nothing.pt", "--out", "o"], "nothing.pt"),
    (["predict", "a.jpg", "--weights", "model.pt", "--out", "o", "--conf", "3"], "conf=3"),
    (["predict", "a.jpg", "--weights", "model.pt", "--out", "model.pt/o"], "cannot be written"),
    (["predict", "a.jpg", "--weights", "model.pt", "--out", ""], "--out: an empty name"),
    (["predict", "a.jpg", "--weights", "model.pt", "--out", "."], "Name a new folder with --out"),
    (["predict", "a.jpg", "--weights", "model.pt2", "--out", "o"], "torch.export.load opens"),
    (["predict", "a.jpg", "--weights", "model.pt", "--out", "o", "--device", "tpu"], "device=tpu: one of")])
def test_what_cannot_work_is_one_paragraph(place, words, told, capsys, monkeypatch):
    from unified_onehead.cli import main
    monkeypatch.chdir(place)
    Image.new("RGB", (8, 8)).save("a.jpg")
    Path("model.pt2").write_bytes(b"exported")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err and err.startswith("error: ") and "Traceback" not in err


def test_forty_eight_megapixels_stay_small():
    from unified_onehead.model.answers import label_pixels
    resource = pytest.importorskip("resource")
    logits = torch.randn(21, 32, 32)  # classes compete everywhere: the worst there is
    original = (6000, 8000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mask = label_pixels(logits, original, (192, 256), 8)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert mask.shape == original and mask.dtype == torch.uint8
    assert grown / (1 << 10 if sys.platform == "linux" else 1 << 20) < 1000, "megabytes"
