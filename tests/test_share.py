"""A network given away: the folder, its files changed, torch.hub, and the Hub's own client against a local server."""
import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file, save_file

from unified_onehead import Predictor
from unified_onehead.core.config import preset, replace_fields, to_dict
from unified_onehead.core.files import InputError
from unified_onehead.deploy.pretrained import save_pretrained
from unified_onehead.deploy.share import load_any, push_to_hub
from unified_onehead.learn.checkpoint import save_model
from unified_onehead.model.backbone import BACKBONES, freeze
from unified_onehead.model.net import OneHead

NAMES = {"seg": ["background", "cat", "sky"], "det": ["cat", "cup"], "cls": ["tench", "church", "horn", "片"]}
COUNTS = {task: len(names) for task, names in NAMES.items()}
FILES = ["README.md", "config.json", "model.safetensors"]


def small(backbone="mobilenet_v2", frozen=-1, **settings):
    torch.manual_seed(0)
    cfg = replace_fields(preset("smoke"), width=24, **settings)
    net = OneHead(BACKBONES[backbone](), COUNTS, cfg.net.width, cfg.net.fused_stride)
    if frozen is not None:
        freeze(net.backbone, frozen)
    for module in net.modules():  # statistics as training leaves them, not the first ones
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=.1)
    return net.eval(), cfg


@pytest.fixture(scope="module")
def network():
    return small()


@pytest.fixture
def saved(network, tmp_path):
    return save_pretrained(tmp_path / "street", *network, NAMES)


def same(one, other):
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        return all(torch.equal(a, b) for a, b in zip(one(x), other(x)))


def refused(source, *words):
    with pytest.raises(InputError) as caught:
        load_any(source)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message
    return message


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize("frozen", [None, 0, 8, -1])
def test_round_trip_to_the_bit(tmp_path, backbone, frozen):
    net, cfg = small(backbone, frozen, fused_stride=8, size=96, seed=5, mask_box_weight=.25, layout=("seg=a", "b=c"))
    save_pretrained(tmp_path / "m", net, cfg, NAMES)
    again, settings, names, facts = load_any(tmp_path / "m")
    assert same(net, again) and settings == cfg and names == NAMES and not again.training
    assert again.backbone.frozen == net.backbone.frozen and type(again.backbone) is type(net.backbone)
    assert [p.requires_grad for p in again.backbone.parameters()] == [p.requires_grad for p in net.backbone.parameters()]
    assert facts["counts"] == COUNTS and facts["masks"] == {"mask_score_weight": .5, "mask_box_weight": .25}


def test_other_libraries_can_read_it(saved, network):
    tensors, about = load_file(saved / "model.safetensors"), json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert tensors.keys() == network[0].state_dict().keys()
    assert about["size"] == 64 and about["mean"] == [.485, .456, .406] and about["std"] == [.229, .224, .225]
    assert about["stride"] == 8 and about["classes"] == NAMES and about["config"] == to_dict(network[1])
    assert about["sha256"] == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    (saved.parent / "plain").mkdir()
    assert sorted(p.name for p in saved.iterdir()) == FILES
    assert saved.stat().st_mode == (saved.parent / "plain").stat().st_mode, "as readable as any new folder"


def entry(*path):
    def change(about, value):
        for key in path[:-1]:
            about = about[key]
        about[path[-1]] = value
    return change


@pytest.mark.parametrize("change, value, words", [
    (entry("format"), "unified_onehead 3", "its format is 'unified_onehead 3'"), (entry("format"), None, "entry format is null"),
    (entry("format_version"), 2, "format_version 2"), (entry("format_version"), "1", 'format_version "1"'),
    (entry("format_version"), 1.5, "format_version 1.5"), (entry("size"), 128, "its entry size is 128"),
    (entry("stride"), 16, "its entry stride is 16"), (entry("std"), [1, 1, 1], "its entry std is"),
    (entry("masks", "mask_box_weight"), .9, "its entry masks is"), (entry("counts", "det"), 3, "its entry counts is"),
    (entry("width"), "24", 'its entry width is "24"'), (entry("width"), True, "its entry width is true"),
    (entry("frozen"), -2, "frozen_blocks=-3"), (entry("frozen"), 1000, "frozen_blocks=999"),
    (entry("backbone"), "vit", "its backbone 'vit' is not one of"), (entry("backbone"), ["a"], "its entry backbone is"),
    (entry("classes", "seg"), ["background"], "classes ask for"), (entry("classes", "cls"), "abcd", 'cls holds "abcd"'),
    (entry("classes", "cls"), [1, 2, 3, 4], "classes: cls holds 1"), (entry("classes", "pose"), ["x"], "seg, det, cls, pose"),
    (entry("config", "net", "width"), 48, "config and classes ask for"), (entry("config", "data", "size"), 63, "size=63"),
    (entry("config", "data", "size"), 96, "its entry size is 64, but settings"),
    (entry("config", "run"), None, "config.run is null"), (entry("config", "loss", "wings"), 1, "wings: no such"),
    (entry("config", "run", "mask_box_weight"), "1", "config.run.mask_box_weight"),
    (entry("config", "data", "layout"), "a=b", "config.data.layout"), (entry("sha256"), "0" * 64, "its sha256 is not the one")])
def test_config_changed_by_hand(saved, change, value, words):
    about = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    change(about, value)
    (saved / "config.json").write_text(json.dumps(about), encoding="utf-8")
    assert str(saved) in refused(saved, words)


@pytest.mark.parametrize("key", ["format", "format_version", "backbone", "frozen", "size", "classes", "config", "versions"])
def test_config_without_an_entry(saved, key):
    about = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    del about[key]
    (saved / "config.json").write_text(json.dumps(about), encoding="utf-8")
    assert "config.json" in refused(saved, key)


@pytest.mark.parametrize("change, words", [
    (lambda t: {**t, "neck.logits": t["neck.logits"] * float("nan")}, "the first: neck.logits"),
    (lambda t: {**t, "head.layers.2.conv.bias": t["head.layers.2.conv.bias"][:-1]}, "the tensor head.layers.2.conv.bias is"),
    (lambda t: {k: v for k, v in t.items() if k != "neck.logits"}, "the tensor neck.logits is missing"),
    (lambda t: {**t, "more": torch.ones(1)}, "the tensor more belongs to another network"),
    (lambda t: {**t, "neck.logits": t["neck.logits"].int()}, "whole numbers"), (lambda t: {}, "is missing"),
    (lambda t: {**t, "neck.logits": t["neck.logits"] + 1}, "its sha256 is not the one")])
def test_tensors_changed(saved, change, words):
    save_file(change(load_file(saved / "model.safetensors")), saved / "model.safetensors")
    assert str(saved) in refused(saved, words)


@pytest.mark.parametrize("share", [0, .0001, .5, .999])
def test_cut_off(saved, share):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:int(share * file.stat().st_size)])
    refused(saved, "model.safetensors: ", "copy" if share else "empty file")


def test_every_flipped_bit_is_seen(saved):
    content = (saved / "model.safetensors").read_bytes()
    for place in range(7, len(content), len(content) // 12):
        (saved / "model.safetensors").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1:])
        refused(saved, str(saved))


def test_no_pickle_is_read(saved):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(saved / "evil"),)
    torch.save({"w": Hostile()}, saved / "model.safetensors")
    refused(saved, "no safetensors file")
    assert not (saved / "evil").exists()


def results(cfg):
    last = {"mIoU": .5123, "AP": .0412, "Top1": .8}
    counts = {task: {"train": 240, "val": 60} for task in NAMES}
    return {"config": to_dict(cfg), "weights": {"name": "b0.pt", "sha256": "ab" * 32}, "final": last,
            "baseline": {"mIoU": .52, "AP": .04, "Top1": .8}, "matrix": {"cls": {**last, "AP50": .1}},
            "floors": {"mIoU": .07, "AP": .01, "Top1": .2}, "device": "Tesla T4", "train_seconds": {"total": 3661.0},
            "data": {"root": "/home/ada/course_minis", "digest": "00ff", "synthetic": False, "counts": counts},
            "reproduced": True, "rules": [{"value": "/home/ada/course_minis"}]}


@pytest.fixture
def run(network, tmp_path):
    net, cfg = network
    cfg = replace_fields(cfg, root="/home/ada/course_minis", weights="/home/ada/b0.pt")
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run/model.pt", net, cfg, NAMES, weights={"name": "b0.pt", "sha256": "ab" * 32}, data="00ff")
    (tmp_path / "run/results.json").write_text(json.dumps(results(cfg)))
    return tmp_path / "run"


def test_the_card_says_what_the_run_measured(run, tmp_path):
    card = (save_pretrained(tmp_path / "street", *load_any(run)) / "README.md").read_text(encoding="utf-8")
    for words in ("| mIoU | 0.5123 |", "| AP | 0.0412 |", "Tesla T4", "60 for detection", "ab" * 32, "digest of the data 00ff",
                  "detection is weak", "240 for segmentation", "by 1.7 points", "| AP | 0.0400 | 0.0412 | +0.12 points |",
                  'from_pretrained("street")', "Apache-2.0", "check them", "1 h 01 min", "片"):
        assert words in card, words
    assert "ada" not in card.replace("adapt", ""), "no name of a home"
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] and front["pipeline_tag"] and "multi-task" in front["tags"]
    assert [r["metrics"][0]["value"] for r in front["model-index"][0]["results"]] == [.5123, .0412, .8]
    again = save_pretrained(tmp_path / "copy/street", *load_any(tmp_path / "street"))
    assert (again / "README.md").read_text(encoding="utf-8") == card, "given on, the record stays"


@pytest.mark.parametrize("change, why", [
    ({"data": {"digest": "1234"}}, "of another run"), ({"weights": {"name": "none", "sha256": ""}}, "of another run"),
    (None, "cannot be read"), ("gone", "there is no results.json")])
def test_scores_of_another_run_are_not_claimed(run, tmp_path, change, why):
    file = run / "results.json"
    if change == "gone":
        file.unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}) if change else "{,")
    card = (save_pretrained(tmp_path / "street", *load_any(run / "model.pt")) / "README.md").read_text(encoding="utf-8")
    assert why in card and "Not measured" in card and "model-index" not in card and "0.5123" not in card


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("user/street", "no such file or folder here", 'pip install "unified-onehead[hub]"')
    for source in ("street", "runs/x/y", "runs/model.pt", "./user/street", "user/street/", tmp_path / "user/street", "https://a.b/c"):
        refused(source, "no such file or folder")
    (tmp_path / "user").mkdir()
    save_pretrained("user/street", *small(), NAMES)
    assert load_any("user/street")[2] == NAMES, "what is here goes before the Hub"
    with pytest.raises(InputError, match="huggingface_hub is not installed"):
        push_to_hub("user/street", *small(), NAMES)


def python(code, cwd, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_torch_hub(saved, network, tmp_path):
    code = f"""
import torch
net = torch.hub.load({str(ROOT)!r}, "onehead_network", {str(saved)!r}, source="local")
torch.manual_seed(1)
with torch.no_grad():
    torch.save([part.clone() for part in net(torch.randn(1, 3, 64, 64))], "out.pt")
"""
    done = python(code, tmp_path, TORCH_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    torch.manual_seed(1)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network[0](torch.randn(1, 3, 64, 64)), torch.load(tmp_path / "out.pt")))


@pytest.mark.skipif(not hasattr(Predictor, "from_pretrained"), reason="the predictor takes model.pt alone")
def test_torch_hub_gives_a_predictor(saved, tmp_path):
    done = python(f"""
import torch
model = torch.hub.load({str(ROOT)!r}, "unified_onehead", {str(saved)!r}, source="local", device="cpu")
print(type(model).__name__, model.classes["det"], model.cfg.net.width)
""", tmp_path, TORCH_HOME=str(tmp_path))
    assert done.stdout.split("\n")[0] == "Predictor ['cat', 'cup'] 24", done.stderr


class Hub(BaseHTTPRequestHandler):
    "As much of the Hub as its client asks for: files of a repository by revision, and commits of small files."
    files, asked = {}, []  # (name, revision) -> {file: bytes}; what was fetched
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, code, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": len(content), "Content-Type": "application/json", **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def find(self):
        "Name, revision or None, the rest of the path."
        path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/").split("/")
        name, rest = "/".join(path[:2]), path[2:]
        revision = next((r for n, r in self.files if n == name and len(rest) > 1 and rest[1] in (r, commit(r))), None)
        return name, revision, rest

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name, revision, rest = self.find()
        if not any(n == name for n, _ in self.files):
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if revision is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = self.files[name, revision]
        if rest[0] in ("revision", "tree"):
            listed = [{"path": f, "rfilename": f, "type": "file", "size": len(c), "oid": "0" * 40} for f, c in files.items()]
            return self.answer(200, listed if rest[0] == "tree" else {
                "id": name, "sha": commit(revision), "siblings": listed, "private": False, "tags": [], "downloads": 0})
        content = files["/".join(rest[2:])]
        self.asked.append(rest[2:][0])
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit(revision))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            self.files.setdefault((name, "main"), {})
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})
        if self.path.startswith("/api/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        name, revision, rest = self.find()
        if rest[0] == "branch":
            self.files.setdefault((name, rest[1]), {})
            return self.answer(200, {})
        if rest[0] == "preupload":
            return self.answer(200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                               for f in json.loads(body)["files"]]})
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                self.files[name, revision][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
        address = f"http://{self.headers['Host']}/{name}/commit/1"
        self.answer(200, {"success": True, "commitOid": commit(revision), "commitUrl": address})


def commit(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.files.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def with_hub(code, cwd, endpoint, **more):
    pytest.importorskip("huggingface_hub")
    head = ("import json, sys, torch\nfrom unified_onehead.deploy.share import load_any, push_to_hub\n"
            "from unified_onehead.core.files import InputError\n")
    done = python(head + code, cwd, HF_ENDPOINT=endpoint, HF_HOME=str(Path(cwd, "hf")), HF_TOKEN="hf_x", HF_HUB_DISABLE_XET="1",
                  HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", no_proxy="*", **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_push_and_load_through_the_hubs_own_client(run, network, hub, tmp_path):
    code = f"""
four = load_any({str(run)!r})
print(push_to_hub("ada/street", *four))
push_to_hub("ada/street", *four, revision="v2")
for source in ("ada/street", "ada/street@v2"):
    net, cfg, classes, facts = load_any(source)
    print(cfg.data.root, cfg.net.weights, len(classes["cls"]))
torch.manual_seed(1)
with torch.no_grad():
    torch.save([part.clone() for part in net(torch.randn(1, 3, 64, 64))], "out.pt")
"""
    address, *loaded = with_hub(code, tmp_path, hub).split()
    assert address.endswith("/ada/street") and loaded == ["course_minis", "b0.pt", "4"] * 2
    assert sorted(Hub.files["ada/street", "main"]) == FILES == sorted(Hub.files["ada/street", "v2"]), "nothing else"
    assert not any(b"/home/ada" in content for content in Hub.files["ada/street", "main"].values())
    assert b'from_pretrained("ada/street")' in Hub.files["ada/street", "main"]["README.md"]
    assert set(Hub.asked) == {"config.json", "model.safetensors"}, "what is not needed is not fetched"
    torch.manual_seed(1)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network[0](torch.randn(1, 3, 64, 64)), torch.load(tmp_path / "out.pt")))
    code = "print(load_any('ada/street')[1].data.root)"
    assert with_hub(code, tmp_path, hub, HF_HUB_OFFLINE="1").split() == ["course_minis"], "once fetched, no network is needed"


TRY = "try:\n    load_any({!r})\nexcept InputError as error:\n    print(error)\n"


def test_what_the_hub_refuses(hub, tmp_path):
    Hub.files["ada/vit", "main"] = {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"x" * 99}
    Hub.files["ada/empty", "main"] = {"README.md": b"x"}
    Hub.asked.clear()
    sources = ("ada/nothing", "ada/vit@v9", "ada/vit", "ada/empty", "a..b/c")
    said = with_hub("".join(map(TRY.format, sources)), tmp_path, hub)
    nothing, revision, vit, empty, name = said.splitlines()
    assert nothing.startswith("ada/nothing: no such file or folder here") and "the Hub has no such model" in nothing
    assert "not that revision" in revision and "was not written by save_pretrained" in vit and "config.json is missing" in empty
    assert "is no name that the Hub takes" in name
    assert set(Hub.asked) == {"config.json"}, "another library's tensors are not fetched"


def test_no_network(tmp_path):
    code = TRY.format("ada/street") + """
from unified_onehead.model.net import OneHead
from unified_onehead.model.backbone import BACKBONES
from unified_onehead.core.config import preset, replace_fields
names = {"seg": ["b", "a"], "det": ["a"], "cls": ["a", "b"]}
try:
    push_to_hub("ada/x", OneHead(BACKBONES["mobilenet_v2"](), {k: len(v) for k, v in names.items()}, 24),
                replace_fields(preset("smoke"), width=24), names)
except InputError as error:
    print(error)
"""
    loaded, sent = with_hub(code, tmp_path, "http://127.0.0.1:9").splitlines()
    assert loaded.startswith("ada/street: no such file or folder here") and "check the network" in loaded
    assert sent.startswith("ada/x: was not sent; the Hub cannot be reached") and "check the network" in sent
