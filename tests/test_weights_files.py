"""Files of start weights and of models as people have them: what is read, and what each message says."""
import argparse
import errno
import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.learn.checkpoint import NotReadableNow, load_model, save_model
from unified_onehead.model.backbone import EfficientNetB0, MobileNetV2, build_backbone
from unified_onehead.model.net import build_network, class_counts


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return EfficientNetB0().body.state_dict()


def load(path):
    net, record, _ = build_backbone(weights=str(path), frozen_blocks=-1)
    return net.state_dict(), record


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and all(word in message for word in words) and "\n" not in message, message
    assert "written by torch.save" not in message or "pickle" in message
    return message


def other(tensors, value=2.):
    return OrderedDict((k, v * value) for k, v in tensors.items())


def below(prefix, tensors):
    return OrderedDict((prefix + k, v) for k, v in tensors.items())


@pytest.mark.parametrize("wrap, place", [
    (lambda t: t, ""), (lambda t: {"state_dict": t, "epoch": 3}, ""), (lambda t: below("module.", t), ""),
    (lambda t: below("_orig_mod.", t), ""), (lambda t: {"state_dict": below("module._orig_mod.", t)}, ""),
    (lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}}, " (its entry model)"),
    (lambda t: {"model_state_dict": below("module.", t), "loss": .5}, " (its entry model_state_dict)"),
    (lambda t: {"net": t, "acc": 91.2}, " (its entry net)"), (lambda t: {"ema": {"module": t}}, " (its entry ema / module)"),
    (lambda t: {"model": {"fc.weight": torch.ones(2)}, "model_ema": t}, " (its entry model_ema)"),
    (lambda t: {"model": t, "model_ema": dict(t)}, " (its entry model)"),
    (lambda t: {"state_dict": t, "state_dict_ema": other(t)}, ""),
    (lambda t: {"state_dict": below("model.backbone.", t)}, " (names that begin with model.backbone.)")])
def test_read_to_the_same_bits(tensors, tmp_path, wrap, place):
    torch.save(wrap(tensors), tmp_path / "w.pt")
    state, record = load(tmp_path / "w.pt")
    assert all(torch.equal(state[f"body.{k}"], v) for k, v in tensors.items())
    assert record["name"] == f"w.pt{place}", record


@pytest.mark.parametrize("content", [lambda t: {"model": t, "model_ema": other(t)},
                                     lambda t: {**below("student.", t), **below("teacher.", other(t))},
                                     lambda t: {"G": {"net": t}, "D": {"net": other(t)}}])
def test_several_that_fit_are_a_question(tensors, tmp_path, content):
    torch.save(content(tensors), tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt", "2 state dicts in it fit EfficientNet-B0, and they differ", "Say which one is meant")
    line = message.partition("`")[2].partition("`")[0].replace("weights.pt", str(tmp_path / "weights.pt"))
    exec(line, {})
    state, _ = load(tmp_path / "weights.pt")
    assert all(torch.equal(state[f"body.{k}"], v) for k, v in tensors.items()), "the advice works"


@pytest.mark.parametrize("key, value", [("_conv_stem.weight", float("nan")), ("_bn0.running_mean", float("inf")),
                                        ("_bn1.bias", float("-inf")), ("_bn0.running_var", -1.)])
def test_broken_numbers(tensors, tmp_path, key, value):
    torch.save({"model": {**tensors, key: torch.full_like(tensors[key], value)}}, tmp_path / "w.pt")
    assert "overwritten" not in refused(tmp_path / "w.pt", f"(the first: {key}", "the file is broken")


def test_too_large_for_single_precision(tensors, tmp_path):
    torch.save({**tensors, "_bn1.bias": torch.full((1280,), 1e300, dtype=torch.float64)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "1 of 358 tensors hold NaN or infinity (the first: _bn1.bias, 1280 of 1280 values)")


@pytest.mark.parametrize("extra, name", [({"best": np.float64(.9)}, "scalar"),
                                         ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
                                         ({"scheduler": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear")])
@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_with_objects(tensors, tmp_path, extra, name, legacy):
    torch.save({"epoch": 7, "model": tensors, **extra}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    message = refused(tmp_path / "w.pt", "a dict with epoch, model (358 tensors)", name, "weights_only=True")
    exec(message.partition("`")[2].partition("`")[0].replace("weights.pt", str(tmp_path / "weights.pt")), {})
    assert torch.equal(load(tmp_path / "weights.pt")[0]["body._bn1.bias"], tensors["_bn1.bias"])


class Hostile:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    Hostile.path = str(tmp_path / "evil")
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": Hostile()}, tmp_path / "w.pt", **options)
        refused(tmp_path / "w.pt", "mkdir")
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Hostile()))
    refused(tmp_path / "w.pt", "a pickle")
    assert not (tmp_path / "evil").exists()


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"1")
    return path.read_bytes()


KINDS = {
    "a web page": b"<!DOCTYPE html><html><title>Sign in</title>", "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "an empty file": b"",
    "an HDF5 file, as Keras writes it": b"\x89HDF\r\n\x1a\n" + bytes(40), "an ONNX file": b"\x08\x08\x12\x07pytorch\x1a\x031.13",
    "64 bytes that begin with zeros": bytes(64), "a text file": b"epoch,loss\n1,0.5\n", "a gzip archive": b"\x1f\x8b\x08\0" * 9,
    "a PNG image": b"\x89PNG\r\n\x1a\n", "a NumPy array": b"\x93NUMPY\x01\0", "the file is damaged": b"\x01\xfe\x07" * 40}


@pytest.mark.parametrize("words", KINDS)
def test_what_a_file_is_instead(tmp_path, words):
    (tmp_path / "w.pt").write_bytes(KINDS[words])
    refused(tmp_path / "w.pt", words)
    with pytest.raises(InputError, match="w.pt: ") as caught:
        load_model(tmp_path / "w.pt")
    assert words in str(caught.value) and not isinstance(caught.value, NotReadableNow)


def header(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "weights"])
@pytest.mark.parametrize("wrap, place", [
    (lambda t: t, ""), (lambda t: below("module.", t), ""), (lambda t: below("_orig_mod.", t), ""),
    (lambda t: below("model.backbone.", t), " (names that begin with model.backbone.)")])
def test_safetensors_are_read_to_the_same_bits(tensors, tmp_path, name, wrap, place):
    save_file(wrap(tensors), tmp_path / name)
    state, record = load(tmp_path / name)
    assert all(torch.equal(state[f"body.{k}"], v) for k, v in tensors.items())
    assert record["name"] == f"{name}{place}" and len(record["sha256"]) == 64


def test_safetensors_of_half_precision(tensors, tmp_path):
    save_file({k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}, tmp_path / "w.safetensors")
    state, _ = load(tmp_path / "w.safetensors")
    assert state["body._bn1.bias"].dtype == torch.float32
    assert torch.equal(state["body._conv_stem.weight"], tensors["_conv_stem.weight"].bfloat16().float())


@pytest.mark.parametrize("change, words", [
    (lambda t: {**t, "_bn1.bias": torch.full((1280,), float("nan"))}, "(the first: _bn1.bias, 1280 of 1280 values)"),
    (lambda t: {**t, "_bn0.running_var": -torch.ones(32)}, "hold a negative variance"),
    (lambda t: {**t, "_bn1.bias": torch.ones(7)}, "weights of another network"),
    (lambda t: {k: v for k, v in t.items() if k != "_bn1.bias"}, "weights of another network"),
    (lambda t: {**t, "_conv_stem.weight": t["_conv_stem.weight"].to(torch.int8)}, "1 of 358 tensors hold whole numbers"),
    (lambda t: {"a": torch.ones(2)}, "weights of another network"), (lambda t: {}, "holds no state dict of tensors"),
    (lambda t: {**below("student.", t), **below("teacher.", other(t))}, "from safetensors.torch import load_file")])
def test_safetensors_that_do_not_fit(tensors, tmp_path, change, words):
    save_file(change(tensors), tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", words)


def test_the_advice_for_several_in_one_safetensors_file(tensors, tmp_path):
    save_file({**below("student.", tensors), **below("teacher.", other(tensors))}, tmp_path / "w.safetensors")
    line = refused(tmp_path / "w.safetensors").partition("`")[2].partition("`")[0]
    exec(line.replace("weights.pt", str(tmp_path / "weights.pt")), {})
    assert torch.equal(load(tmp_path / "weights.pt")[0]["body._bn1.bias"], tensors["_bn1.bias"])


ONE = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize("content", [
    header(ONE), header(ONE) + bytes(3), header(ONE) + bytes(5), header(ONE)[:30], header({"w": {"dtype": "F99"}}) + bytes(4),
    header({"w": {**ONE["w"], "shape": [2]}}) + bytes(4), header({"w": {**ONE["w"], "data_offsets": [4, 8]}}) + bytes(4)])
def test_damaged_safetensors(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(tmp_path / "w.safetensors", "cannot be read as safetensors", "Take another copy")


def test_safetensors_are_no_model(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors: is a safetensors file, tensors without the settings"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("names, words", [
    (("n/data.pkl", "n/constants.pkl", "n/code/__torch__.py"), "a TorchScript archive"),
    (("config.json", "model.weights.h5"), "Keras"),
    (("a.npy", "b.npy"), "(.npz)"), (("best/epoch_9.pth",), "a zip archive of 1 files (the first: best/epoch_9.pth)")])
def test_what_a_zip_is_instead(tmp_path, names, words):
    zipped(tmp_path / "w.pt", *names)
    refused(tmp_path / "w.pt", words)


@pytest.mark.parametrize("share", [.02, .5, .99])
@pytest.mark.parametrize("legacy", [False, True])
def test_damaged(tensors, tmp_path, share, legacy):
    torch.save({"model": tensors}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content[:int(share * len(content))])
    refused(tmp_path / "w.pt", "cannot be read as a state dict", "copy")


def test_weights_of_another_network(tmp_path):
    torch.save({"model": {k: v for k, v in MobileNetV2().body.state_dict().items() if ".17." not in k}}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "weights of another network", "first features.17.")
    torch.save({"epoch": 3, "args": {"lr": .1}}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "holds no state dict of tensors, but a dict with epoch, args")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    cfg, names = replace_fields(preset("smoke"), width=24), {"seg": ["background", "a"], "det": ["x"], "cls": ["p", "q"]}
    net, _ = build_network(cfg, class_counts(names))
    save_model(path := tmp_path_factory.mktemp("model") / "model.pt", net, cfg, names)
    return path


def test_a_model_as_start_weights(model):
    state, record = load(model)
    assert record["name"] == "model.pt (names that begin with backbone.body.)"
    assert torch.equal(state["body._bn1.bias"], load_model(model)[0].backbone.state_dict()["body._bn1.bias"])


@pytest.mark.parametrize("change, words", [
    (lambda s: s["state_dict"].popitem() and s, "its parts do not fit each other"),
    (lambda s: {**s, "classes": None}, "its parts do not fit"),
    (lambda s: {**s, "state_dict": {k: v * float("nan") for k, v in s["state_dict"].items()}}, "hold NaN or infinity"),
    (lambda s: s["state_dict"], "tensors, perhaps the weights of another network")])
def test_a_model_that_was_changed(model, tmp_path, change, words):
    torch.save(change(torch.load(model, weights_only=True)), tmp_path / "m.pt")
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ESTALE])
def test_a_disk_that_refuses(model, monkeypatch, number):
    real = os.stat

    def refusing(path, *args, **options):
        if str(path).endswith("model.pt"):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
    refused(model, os.strerror(number), "try again")
    with pytest.raises(NotReadableNow, match="cannot be read now"):
        load_model(model)


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "w.pt").symlink_to("moved.pt")
    refused(tmp_path / "w.pt", "a link to moved.pt, which is not there")
    with pytest.raises(InputError, match="a link to moved.pt, which is not there"):
        load_model(tmp_path / "w.pt")
