"""Exported files: the numpy script answers as the package does, sizes are free, and nothing is left of an export that failed."""
import importlib.util
import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.data.records import Record, letterbox, load_sample, normalise
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.deploy import export
from unified_onehead.deploy.export import export_model
from unified_onehead.deploy.predictor import Predictor
from unified_onehead.deploy.runners import load_onnx
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.backbone import Backbone
from unified_onehead.model.net import OneHead, class_counts

pytest.importorskip("onnx"), pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")

NAMES = {"seg": ["background", "cat", "bus"], "det": ["cat", "kite", "dog"], "cls": ["tench", "church", "parachute"]}
SIZE = 64
CONF = 0.1  # lowest score compared: a network of random weights is sure of nothing


class Small(Backbone):
    "Four convolutions with norms: the exporter takes its time for each layer."
    title, channels, taps, steps = "small", (8, 16, 24), (1, 2, 3), 4

    def __init__(self):
        super().__init__()
        def layer(i, o, stride):
            return torch.nn.Sequential(torch.nn.Conv2d(i, o, 3, stride, 1, bias=False), torch.nn.BatchNorm2d(o), torch.nn.ReLU6())
        self.body = torch.nn.ModuleList([layer(3, 8, 4), layer(8, 8, 2), layer(8, 16, 2), layer(16, 24, 2)])

    def run_step(self, index, x):
        return self.body[index](x)

    def step_modules(self, index):
        return [self.body[index]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A network whose outputs differ from place to place, its settings, and the ONNX file."
    torch.manual_seed(0)
    net, cfg = OneHead(Small(), class_counts(NAMES), 24).eval(), replace_fields(preset("smoke"), width=24)
    output = net.head.layers[2]
    with torch.no_grad():
        output.conv.weight[output.channels("det")].normal_(0, 0.8)
        output.conv.weight[output.channels("seg")].normal_(0, 3)
        output.conv.weight[output.channels("cls")].normal_(0, 1)
        output.conv.bias[4 * output.fine**2:5 * output.fine**2] = 0
    return net, cfg, export_model(net, cfg, NAMES, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def script():
    "examples/onnx_numpy.py as a module."
    spec = importlib.util.spec_from_file_location("onnx_numpy", ROOT / "examples/onnx_numpy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CONF = CONF
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Drawn pictures: as large as the input, which no resampling changes, in both directions; and one that is shrunk."
    folder = tmp_path_factory.mktemp("drawn")
    root = make_synthetic(folder / "minis", seed=3, n_train=12, n_val=10, side=SIZE)
    files = sorted((root / "mini_coco_det" / "val").rglob("*.jpg"))[:8]
    with Image.open(files[0]) as image:
        image.crop((0, 0, 64, 40)).save(folder / "wide.png"), image.crop((0, 0, 33, 64)).save(folder / "high.png")
    large = make_synthetic(folder / "large", seed=4, n_train=12, n_val=10, side=150) / "mini_coco_det" / "val"
    large = sorted(large.rglob("*.jpg"))[0]
    with Image.open(large) as image:
        image.crop((0, 0, 150, 10)).save(folder / "flat.png")  # 64 x 4 of 4.3: its axes shrink unequally
    return [*files, folder / "wide.png", folder / "high.png", large, folder / "flat.png"]


@torch.no_grad()
def ours(net, cfg, path):  # boxes, scores, names, mask, probabilities
    "The package's own answer."
    tasks = make_tasks(NAMES, cfg, net.stride)
    boxed = letterbox(load_sample(Record("det", str(path), 1, upright=True)), cfg.data.size)
    output = net(normalise(boxed.image)[None])
    found, mask, probs = (tasks[t].predict(output, 0, boxed, cfg.data.size) for t in ("det", "seg", "cls"))
    kept = found.scores > CONF
    boxes, scores, labels = (part[kept] for part in found)
    return boxes.numpy(), scores.numpy(), [NAMES["det"][k] for k in labels], mask.numpy(), probs


@pytest.mark.parametrize("weights", [(0.5, 1.0), (0.0, 0.0), (1.0, 0.4), (0.0, 1.0)])
def test_numpy_script(made, script, pictures, weights):
    "Boxes within half a pixel, names, and 99.9 % of the mask's pixels, with every use of the masks."
    net, cfg, path = made
    cfg = replace_fields(cfg, mask_score_weight=weights[0], mask_box_weight=weights[1])
    texts = export.as_text(export.describe(net, cfg, NAMES, SIZE))
    real, seen, pixels, same, count, hits = script.onnxruntime.InferenceSession, set(), 0, 0, 0, 0

    def session(*args, **more):  # the same graph with other settings in its metadata
        opened = real(*args, **more)
        return mock.Mock(run=opened.run, get_modelmeta=lambda: mock.Mock(custom_metadata_map=texts))

    with mock.patch.object(script.onnxruntime, "InferenceSession", session):
        answers = [script.answer(str(path), str(picture)) for picture in pictures]
    for picture, (found, mask, names, probs) in zip(pictures, answers):
        boxes, scores, labels, our_mask, our_probs = ours(net, cfg, picture)
        theirs = np.array([box for _, box, _ in found]).reshape(-1, 4)
        near = np.abs(theirs[:, None] - boxes).max(2) < 0.5
        near &= np.abs(np.array([score for score, _, _ in found])[:, None] - scores) < 0.01
        near &= np.array([label for _, _, label in found])[:, None] == np.array(labels)
        count, hits = count + len(found) + len(boxes), hits + near.any(0).sum() + near.any(1).sum()
        assert mask.shape == our_mask.shape and np.abs(np.array(list(probs.values())) - our_probs.numpy()).max() < 0.01
        assert names == NAMES["seg"] and list(probs) == NAMES["cls"]
        seen |= set(labels)
        pixels, same = pixels + mask.size, same + (mask == our_mask).sum()
    assert same >= 0.999 * pixels
    assert count > 200 and hits >= 0.99 * count, "all but a box that lies on a threshold"
    classes = set().union(*(np.unique(mask).tolist() for _, mask, *_ in answers))
    assert {"cat", "dog"} <= seen and len(classes) == 3, "boxes with and without a class in common, and every class of the mask"


def test_numpy_script_and_predictor(made, script, pictures):
    "The file in Predictor, the network in torch and the script give the same boxes, mask and class."
    net, cfg, path = made
    predictor, count, hits = Predictor(path, "cpu"), 0, 0
    for picture in pictures:
        r = predictor(picture, conf=CONF)
        boxes, scores, labels, mask, probs = ours(net, cfg, picture)
        found, their_mask, _, theirs = script.answer(str(path), str(picture))
        assert abs(len(r.boxes) - len(boxes)) <= 1 and np.allclose(r.probs, probs, atol=1e-3) and (r.mask == mask).mean() > 0.999
        assert r.mask.shape == their_mask.shape and np.argmax(r.probs) == np.argmax(list(theirs.values()))
        near = np.abs(np.array([box for _, box, _ in found]).reshape(-1, 1, 4) - r.boxes).max(2) < 0.5
        near &= np.array([label for *_, label in found])[:, None] == np.array([r.names[k] for k in r.labels])
        count, hits = count + len(found) + len(r.boxes), hits + near.any(0).sum() + near.any(1).sum()
    assert count > 200 and hits >= 0.99 * count


def test_numpy_script_is_short_and_alone(made, script, pictures):
    "Under 80 lines of code, and it imports neither torch nor this package."
    text = (ROOT / "examples/onnx_numpy.py").read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 80
    watch = ("import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
             "print('heavy:', [m for m in ('torch', 'torchvision', 'unified_onehead') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", watch, str(ROOT / "examples/onnx_numpy.py"), str(made[2]), str(pictures[0])],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout and "class: " in done.stdout and "mask: " in done.stdout


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 64, 96), (2, 3, 160, 32)])
def test_sizes_are_free(made, shape):
    "A dynamic file takes any number of pictures of any size, and answers as the network."
    net, cfg, path = made
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    other, read, classes, facts = load_onnx(path, "cpu")
    with torch.no_grad():
        expected = export.Deployed(net).eval()(images)
    for a, b in zip(expected, export.Deployed.forward(mock.Mock(net=other, **{}), images)):
        assert a.shape == b.shape and ((a - b).abs() / a.abs().clamp(min=1)).max() < 1e-3
    assert classes == NAMES and read.data.size == SIZE and facts["dynamic"] is True and facts["same"] == [1, -1, -1]


@pytest.mark.parametrize("format", ["torchscript", "torch_export"])
def test_formats_of_torch(made, tmp_path, format):
    "The same three outputs at free sizes, and the metadata beside them."
    net, cfg, _ = made
    path, extra = export_model(net, cfg, NAMES, tmp_path / f"model{export.FORMATS[format]}", format), {export.SIDECAR: ""}
    run = (torch.jit.load(str(path), _extra_files=extra) if format == "torchscript"
           else torch.export.load(path, extra_files=extra).module())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        for a, b in zip(export.Deployed(net).eval()(images), run(images)):
            assert a.shape == b.shape and ((a - b).abs() / a.abs().clamp(min=1)).max() < 1e-3
    assert json.loads(extra[export.SIDECAR])["classes"] == NAMES


def test_nothing_is_left_of_a_failure(made, tmp_path):
    "An older file stays, and no part of a new one lies beside it."
    net, cfg, path = made
    model = __import__("onnx").load(path)
    old = tmp_path / "old.onnx"
    old.write_bytes(b"older")
    other = OneHead(Small(), class_counts(NAMES), 24)
    with mock.patch.object(export, "write_onnx", lambda *args: model), pytest.raises(InputError, match="answers otherwise"):
        export_model(other, cfg, NAMES, old)
    with mock.patch.object(export, "write_onnx", lambda *args: model), pytest.raises(InputError, match="cannot be written"):
        export_model(net, cfg, NAMES, old / "below" / "new.onnx")
    with mock.patch.object(export, "write_onnx", side_effect=RuntimeError("no")), pytest.raises(RuntimeError):
        export_model(net, cfg, NAMES, tmp_path / "new.onnx")
    assert old.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["old.onnx"]


def test_reduced_precision_from_end_to_end(made, tmp_path):
    "half, int8 and nms through the one call, each with what it says of itself."
    net, cfg, path = made
    onnx = __import__("onnx")
    root = make_synthetic(tmp_path / "minis", seed=5, n_train=12, n_val=10, side=SIZE)
    pictures = sorted((root / "mini_coco_det" / "train").rglob("*.jpg"))
    kinds = {"half": {"half": True}, "int8": {"int8": True, "calibration": pictures}, "nms": {"nms": True, "conf": 0.2}}
    for name, wishes in kinds.items():
        with mock.patch.object(export, "write_onnx", lambda *args: onnx.load(path)):
            out = export_model(net, cfg, NAMES, tmp_path / name / "model.onnx", **wishes)
        if name != "nms":
            other, *_, facts = load_onnx(out, "cpu")
            assert facts["precision"] == {"half": "float16", "int8": "int8"}[name]
            assert other(torch.zeros(2, 3, 96, 64)).segmentation.shape == (2, 3, 12, 8)
        else:
            with pytest.raises(InputError, match="suppresses boxes by itself"):
                load_onnx(out, "cpu")
