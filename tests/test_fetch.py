"""Every fault that `data get` must survive, against a local HTTP server and temporary disks; gdown is the real one."""
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gdown
import numpy as np
import pytest
import requests
from conftest import ROOT
from PIL import Image

from unified_onehead import cli
from unified_onehead.fetch import archive as archives
from unified_onehead.fetch import drive, job
from unified_onehead.fetch import get as fetch
from unified_onehead.core.files import InputError
from unified_onehead.fetch.http import DiskFull, Net, SourceError, download
from unified_onehead.fetch.drive import download_drive
from unified_onehead.fetch.archive import Unclear, unpack
from unified_onehead.fetch.job import whats_wrong
from unified_onehead.fetch.official import Official
from unified_onehead.fetch.get import get_data
from unified_onehead.data.manifest import CLASSES, Rule, coco_index, imagenette_index, make_manifest, manifest_bytes, voc_index
from unified_onehead.data.prepare import differences, prepare, read_manifest
from unified_onehead.data.classes import WNIDS
from unified_onehead.data.sources import read_minis
from unified_onehead.data.check import check_minis
from unified_onehead.data.synthetic import FOLDERS, make_synthetic

QUICK = Net(timeout=(2, 0.5), retries=2, backoff=0.01, connections=4)
QUOTA = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>Too many users have viewed or downloaded this file"
NOWHERE = Official(("http://127.0.0.1:9/coco.zip", ""), ("http://127.0.0.1:9/voc.tar", ""), ("http://127.0.0.1:9/nette.tgz", ""))


class Handler(BaseHTTPRequestHandler):
    "Serves `server.files`; `server.faults[path]` is used up, one entry per request."

    def do_GET(self):
        picture = self.path.endswith(".jpg")
        with self.server.lock:
            self.server.busy += picture
            self.server.busiest = max(self.server.busiest, self.server.busy)
        time.sleep(0.003)
        with self.server.lock:  # before the answer, for with it the client goes on
            self.server.busy -= picture
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0]
        asked, body = self.headers.get("Range"), self.server.files.get(self.path, self.server.files.get(path))
        faults = self.server.faults.get(path) or [None]
        fault = faults[0] if faults[-1] == "always" else faults.pop(0)
        self.server.log.append((self.path, asked))
        if isinstance(fault, int) or body is None:
            self.send_response(fault or 404)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            return
        tag = self.server.headers.get(path, {}).get("ETag")
        if self.headers.get("If-Range", tag) != tag:
            asked = None  # another version: all of it
        start = int(asked[6:-1]) + (fault == "shifted") if asked and fault != "no range" else 0
        if asked and start >= len(body):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        for name, value in self.server.headers.get(path, {"Content-Type": "application/octet-stream"}).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        try:
            if isinstance(fault, tuple):  # ("cut", after so many bytes)
                self.wfile.write(rest[:fault[1]])
            elif fault == "hold":
                self.server.release.wait(100)
                self.wfile.write(rest)
            elif fault == "stall":
                self.wfile.write(rest[:len(rest) // 2])
                self.wfile.flush()
                self.server.release.wait(20)
            else:
                self.wfile.write(rest)
        except OSError:
            pass  # the other side has gone, which is what some tests are about

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.files, server.faults, server.headers, server.log, server.release = {}, {}, {}, [], threading.Event()
        server.lock, server.busy, server.busiest = threading.Lock(), 0, 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


def zip_of(folder: Path, prefix="minis/") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return out.getvalue()


@pytest.fixture(scope="session")
def minis(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("made") / "minis", n_train=20, n_val=20, side=32)


@pytest.fixture(scope="session")
def archive(minis):
    "The minis as an archive in the course's layout."
    return zip_of(minis)


@pytest.fixture(scope="session")
def wanted(minis, tmp_path_factory):
    "The manifest's files of the canonical set made of them."
    return read_manifest(prepare(minis, tmp_path_factory.mktemp("canonical") / "set"))["files"]


@pytest.fixture
def get(tmp_path, server, archive):
    "`get_data` with the archive on the server, quick and without the official hosts; what it says is kept in `get.said`."
    server.files["/minis.zip"] = archive

    def call(to="data", **options):
        options = {"urls": (f"{server.url}/minis.zip",), "official": NOWHERE, "net": QUICK, "drive": "", **options}
        return get_data(tmp_path / to, say=call.said.append, **options)

    call.said = []
    return call


def is_whole(folder: Path, wanted: dict) -> bool:
    "The same files as ever, nothing left lying about, and readable."
    assert read_manifest(folder)["files"] == wanted and whats_wrong(folder) == "" and not differences(folder).new
    assert not (folder / ".work").exists() and not list(folder.rglob("*.part"))
    return {task: len(part["train"]) for task, part in read_minis(folder).records.items()} == dict.fromkeys(FOLDERS, 20)


def holds_no_set(folder: Path) -> bool:
    return not any((folder / name).exists() for name in FOLDERS.values())


# ---- one file --------------------------------------------------------------------------------------------------------

BODY = random.Random(3).randbytes(120_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("places", [(0,), (1,), (16_384,), (65_535, 65_537), (119_999,), (7,) * 2, (40_000, 1, 40_000, 1)])
def test_cut_at_any_byte(server, tmp_path, places):
    server.files["/f"], server.faults["/f"] = BODY, [("cut", place) for place in places]
    assert download(f"{server.url}/f", tmp_path / "f", SHA, QUICK) == SHA
    assert (tmp_path / "f").read_bytes() == BODY and sorted(os.listdir(tmp_path)) == ["f"]
    assert len(server.log) == len(places) + 1


def test_cut_again_and_again_still_arrives(server, tmp_path):
    "More breaks than retries: every try that brings something counts as none."
    server.files["/f"], server.faults["/f"] = BODY, [("cut", 20_000)] * 5
    assert download(f"{server.url}/f", tmp_path / "f", SHA, Net((2, 1), retries=1, backoff=0)) == SHA


def test_stopped_process_is_continued_by_the_next(server, tmp_path):
    server.files["/f"], server.faults["/f"] = BODY, [("cut", 50_000), 404]
    with pytest.raises(SourceError):
        download(f"{server.url}/f", tmp_path / "f", SHA, QUICK)
    kept = (tmp_path / "f.part").stat().st_size
    assert kept > 0 and not (tmp_path / "f").exists()
    server.faults.clear()
    server.log.clear()
    assert download(f"{server.url}/f", tmp_path / "f", SHA, QUICK) == SHA
    assert server.log == [("/f", f"bytes={kept}-")]


def test_stalled_connection(server, tmp_path):
    server.files["/f"], server.faults["/f"] = BODY, ["stall"]
    assert download(f"{server.url}/f", tmp_path / "f", SHA, QUICK) == SHA
    assert len(server.log) == 2 and server.log[1][1], "given up, and continued where it stood still"
    server.faults["/f"] = ["stall", "always"]
    with pytest.raises(SourceError, match="nothing came for 0.5 s"):
        download(f"{server.url}/f", tmp_path / "g", SHA, Net((2, 0.5), retries=0, backoff=0))


def test_server_that_ignores_range(server, tmp_path):
    server.files["/f"], server.faults["/f"] = BODY, [("cut", 50_000), "no range"]
    assert download(f"{server.url}/f", tmp_path / "f", "", QUICK) == SHA, "begun anew, not appended to"


def test_file_that_changed_on_the_server(server, tmp_path):
    server.files["/f"], server.faults["/f"] = BODY, [("cut", 50_000), 404]
    with pytest.raises(SourceError, match="status 404"):
        download(f"{server.url}/f", tmp_path / "f", "", QUICK)
    other = random.Random(4).randbytes(120_000)
    server.files["/f"] = other
    digest = hashlib.sha256(other).hexdigest()
    assert download(f"{server.url}/f", tmp_path / "f", digest, QUICK) == digest, "the mixture was refused and fetched anew"


def test_no_mixture_of_two_versions(server, tmp_path):
    "Nobody knows the file's hash; the server is held to the version that the part is of."
    server.files["/f"], server.faults["/f"], server.headers["/f"] = BODY, [("cut", 50_000), 404], {"ETag": '"one"'}
    with pytest.raises(SourceError, match="status 404"):
        download(f"{server.url}/f", tmp_path / "f", "", QUICK)
    server.files["/f"], server.headers["/f"] = random.Random(4).randbytes(120_000), {"ETag": '"two"'}
    download(f"{server.url}/f", tmp_path / "f", "", QUICK)
    assert (tmp_path / "f").read_bytes() == server.files["/f"]


def test_another_piece_than_was_asked_for(server, tmp_path):
    "The answer begins a byte too late: nothing is appended, and no hash is needed to notice."
    server.files["/f"], server.faults["/f"] = BODY, [("cut", 50_000), "shifted"]
    assert download(f"{server.url}/f", tmp_path / "f", "", QUICK) == SHA


def test_smaller_pictures_are_asked_for(get):
    assert read_manifest(get(max_side=32))["max_side"] == 32


def test_part_longer_than_the_file(server, tmp_path):
    (tmp_path / "f.part").write_bytes(BODY * 2)
    (tmp_path / "f.part.json").write_text(json.dumps({"url": f"{server.url}/f"}))
    server.files["/f"] = BODY
    assert download(f"{server.url}/f", tmp_path / "f", SHA, QUICK) == SHA


def test_busy_server(server, tmp_path):
    server.files["/f"], server.faults["/f"] = BODY, [429, 503]
    assert download(f"{server.url}/f", tmp_path / "f", SHA, QUICK) == SHA
    server.faults["/f"] = [429, "always"]
    with pytest.raises(SourceError, match="status 429"):
        download(f"{server.url}/f", tmp_path / "g", SHA, QUICK)
    assert not (tmp_path / "g").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_disk_full_while_downloading(server, tmp_path):
    server.files["/f"] = BODY
    (tmp_path / "f.part").symlink_to("/dev/full")  # the kernel itself says: no space left on device
    (tmp_path / "f.part.json").write_text(json.dumps({"url": f"{server.url}/f"}))
    with pytest.raises(DiskFull, match="the disk is full") as caught:
        download(f"{server.url}/f", tmp_path / "f", SHA, QUICK)
    assert "Make room" in str(caught.value) and not (tmp_path / "f").exists()


def test_too_little_room_is_said_before_downloading(server, tmp_path, monkeypatch):
    server.files["/f"] = BODY
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFull, match="are needed"):
        download(f"{server.url}/f", tmp_path / "f", SHA, QUICK)


# ---- Google Drive: gdown's own code, its requests led to the local server ----------------------------------------------

FILE_ID = "1a2B3c4D5e6F7g8H9i0JkLmNoP"
FORM = b"""<!DOCTYPE html><html><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="x"/><input type="hidden" name="confirm" value="t"/></form></body></html>"""
REFUSAL = (b'<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-subcaption">'
           b"Too many users have viewed or downloaded this file recently. Please try again later.</p></body></html>")


@pytest.fixture
def google(server, monkeypatch, tmp_path):
    "Requests to Google's hosts go to the local server; gdown notices nothing."
    send = requests.adapters.HTTPAdapter.send

    def led(self, request, **options):
        for host in ("https://drive.google.com", "https://drive.usercontent.google.com"):
            request.url = request.url.replace(host, server.url)
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", led)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/uc"], server.headers["/uc"] = FORM, {"Content-Type": "text/html; charset=utf-8"}
    server.headers["/download"] = {"Content-Type": "application/octet-stream",
                                   "Content-Disposition": 'attachment; filename="minis.zip"'}
    return server


def as_old(url=None, output=None, quiet=False, proxy=None, speed=None, use_cookies=True, verify=True, id=None, fuzzy=False,
           resume=False, format=None, user_agent=None, log_messages=None):
    "gdown's own code behind the signature of 5.2.2: no timeout, no retries."
    return REAL_GDOWN(url=url, output=output, quiet=quiet, use_cookies=use_cookies, id=id, resume=resume)


REAL_GDOWN = gdown.download


def test_drive_with_an_old_gdown_says_how_to_upgrade(google, monkeypatch, tmp_path):
    monkeypatch.setattr(gdown, "download", as_old)
    google.files["/download"] = BODY
    with pytest.raises(SourceError, match=r"needs gdown 6.3 or newer, and [\d.]+ is installed. Run `pip install -U gdown`"):
        download_drive(FILE_ID, tmp_path / "f", SHA, QUICK)
    assert google.log == [] and not list(tmp_path.iterdir()), "nothing was asked for"


def test_drive_confirmation_page_is_followed(google, tmp_path):
    google.files["/download"] = BODY
    (tmp_path / "d").mkdir()
    assert download_drive(FILE_ID, tmp_path / "d/f", SHA, QUICK) == SHA
    assert os.listdir(tmp_path / "d") == ["f"] and [path for path, _ in google.log][0] == f"/uc?id={FILE_ID}"


def test_drive_quota_page(google, tmp_path):
    google.files["/uc"] = REFUSAL
    with pytest.raises(SourceError, match="Too many users"):
        download_drive(FILE_ID, tmp_path / "f", "", QUICK)
    assert not list(tmp_path.glob("f*"))


def test_drive_cut_and_stalled(google, tmp_path):
    google.files["/download"], google.faults["/download"] = BODY, [("cut", 70_000), "stall"]
    (tmp_path / "d").mkdir()
    assert download_drive(FILE_ID, tmp_path / "d/f", SHA, QUICK) == SHA
    assert os.listdir(tmp_path / "d") == ["f"]


def test_drive_wrong_hash_leaves_nothing(google, tmp_path):
    google.files["/download"] = BODY
    with pytest.raises(SourceError, match="damaged or another file"):
        download_drive(FILE_ID, tmp_path / "f", "0" * 64, QUICK)
    assert not list(tmp_path.glob("f*"))


def test_set_from_a_drive_link(google, get, archive, wanted, tmp_path):
    google.files["/download"] = archive
    folder = get(urls=[f"https://drive.google.com/file/d/{FILE_ID}/view?usp=sharing"])
    assert is_whole(folder, wanted)


# ---- archives ----------------------------------------------------------------------------------------------------------

def tar_bytes(mode, *members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for name, data, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, link
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_bytes(name, data=b"x", mode=0):
    out = io.BytesIO()
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(info, data)
    return out.getvalue()


HOSTILE = {
    "zip: parent": zip_bytes("a/../../evil"), "zip: absolute": zip_bytes("/tmp/evil"), "zip: drive letter": zip_bytes("C:/evil"),
    "zip: backslash": zip_bytes("..\\evil"), "zip: link": zip_bytes("l", b"/etc/passwd", 0o120777),
    "tar: parent": tar_bytes("w", ("../evil", b"x", tarfile.REGTYPE, "")),
    "tar: absolute": tar_bytes("w:gz", ("/tmp/evil", b"x", tarfile.REGTYPE, "")),
    "tar: link": tar_bytes("w", ("l", b"", tarfile.SYMTYPE, "/etc/passwd")),
    "tar: hard link": tar_bytes("w", ("l", b"", tarfile.LNKTYPE, "../../evil")),
    "tar: device": tar_bytes("w", ("d", b"", tarfile.CHRTYPE, "")), "tar: pipe": tar_bytes("w", ("p", b"", tarfile.FIFOTYPE, "")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member(name, tmp_path, get, server):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(HOSTILE[name])
    with pytest.raises(SourceError, match="Do not use it"):
        unpack(tmp_path / "in/a", tmp_path / "in/out")
    assert not (tmp_path / "in/out").exists() and not [p for p in tmp_path.rglob("*evil*")]
    server.files["/minis.zip"] = HOSTILE[name]
    with pytest.raises(InputError, match="Do not use it"):
        get()
    assert holds_no_set(tmp_path / "data")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_archive_cut_in_half(kind, minis, archive, get, server, tmp_path):
    "The download is complete, the archive is not."
    if kind != "zip":
        names = [(p.relative_to(minis).as_posix(), p.read_bytes(), tarfile.REGTYPE, "") for p in minis.rglob("*") if p.is_file()]
        archive = tar_bytes("w" if kind == "tar" else "w:gz", *names)
    server.files["/minis.zip"] = archive[:len(archive) // 2]
    with pytest.raises(InputError, match=rf"zip: {server.url}/minis.zip: .*cut off"):
        get()
    assert holds_no_set(tmp_path / "data")
    server.files["/minis.zip"] = archive
    assert not differences(get()), "the damaged file was not kept as good"


def test_bomb(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(5_000_000))
    monkeypatch.setattr(archives, "MAX_BYTES", 1_000_000)
    with pytest.raises(SourceError, match="unpacks to over"):
        unpack(tmp_path / "b.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for k in range(20):
            file.writestr(f"{k}", b"")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    with pytest.raises(SourceError, match="or 10 files"):
        unpack(tmp_path / "m.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the whole way -----------------------------------------------------------------------------------------------------

def test_from_nothing_to_verified_minis(get, wanted, server):
    folder = get()
    assert is_whole(folder, wanted) and check_minis(folder).ok
    server.log.clear()
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if not p.name.startswith(".")}
    assert get() == folder and server.log == []
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if not p.name.startswith(".")} == stamps


def test_one_archive_per_dataset(get, minis, wanted, server):
    for name in FOLDERS.values():
        server.files[f"/{name}.zip"] = zip_of(minis / name, "")
    folder = get(urls=[f"{server.url}/{name}.zip" for name in FOLDERS.values()])
    assert is_whole(folder, wanted)


REASONS = [([404], "status 404"), ([429, "always"], "status 429"), ([("cut", 9), "always"], "the connection broke")]


@pytest.mark.parametrize("fault, words", REASONS)
def test_reasons_are_said(get, server, tmp_path, fault, words):
    server.faults["/minis.zip"] = fault
    with pytest.raises(InputError) as caught:
        get()
    message = str(caught.value)
    assert words in message and "drive: no archives" in message and "official: " in message and "--source synthetic" in message
    assert "\n" not in message and any(line.startswith("skipped zip") and words in line for line in get.said)
    assert holds_no_set(tmp_path / "data"), "and no synthetic data in its place"


@pytest.mark.parametrize("headers", [{"Content-Type": "text/html"}, {"Content-Type": "application/zip"}])
def test_quota_page_with_status_200(get, server, tmp_path, headers, archive, wanted):
    server.files["/minis.zip"], server.headers["/minis.zip"] = QUOTA, headers
    with pytest.raises(InputError, match="quota"):
        get()
    assert holds_no_set(tmp_path / "data")
    server.files["/minis.zip"], server.headers = archive, {}
    assert is_whole(get(), wanted)


def test_wrong_hash(get, server, tmp_path, wanted, archive):
    with pytest.raises(InputError, match="damaged or another file"):
        get(urls=[f"{server.url}/minis.zip#sha256={'0' * 64}"])
    assert holds_no_set(tmp_path / "data")
    assert is_whole(get(urls=[f"{server.url}/minis.zip#sha256={hashlib.sha256(archive).hexdigest()}"]), wanted)


@pytest.mark.parametrize("tail", ["#sha256=123", "#sha256=", "#md5=" + "0" * 32, "#SHA1=" + "0" * 40])
def test_hash_that_cannot_be_verified_is_refused(get, server, tmp_path, tail):
    with pytest.raises(InputError, match="no hash that can be verified"):
        get(urls=[f"{server.url}/minis.zip{tail}"], source="zip")
    assert server.log == [] and holds_no_set(tmp_path / "data")


def test_one_source_alone(get, server, tmp_path, archive):
    for source, reason in (("drive", "drive: no archives"), ("zip", "zip: no --url"), ("official", "official: http")):
        with pytest.raises(InputError, match="no source gave the data") as caught:
            get(source, source=source, urls=())
        message = str(caught.value)
        assert reason in message and message.count(" | ") == 1, "this source's reason and how to go on"
    assert server.log == []
    get.said.clear()
    made = get("made", source="synthetic", urls=())
    assert (made / "synthetic.json").is_file() and "not the assignment's data" in get.said[0]
    with pytest.raises(InputError, match="holds synthetic minis"):
        get("made")
    with pytest.raises(InputError, match="--url is of no use with --source synthetic"):
        get("made", source="synthetic")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/minis.zip").write_bytes(archive[:len(archive) // 2])
    with pytest.raises(InputError, match="own/minis.zip: damaged or cut off"):
        get("own", source="drive", urls=())
    (tmp_path / "own/minis.zip").write_bytes(archive)
    folder = get("own", source="drive", urls=())
    assert whats_wrong(folder) == "" and (folder / "minis.zip").read_bytes() == archive and server.log == []


def test_no_network_at_all(get, tmp_path):
    with pytest.raises(InputError) as caught:
        get(urls=["http://127.0.0.1:9/minis.zip"])
    message = str(caught.value)
    assert message.count("no connection") == 4, "the link and three official hosts, each by its address"
    assert all(name in message for name in ("minis.zip", "coco.zip", "voc.tar", "nette.tgz")) and "--source synthetic" in message
    assert holds_no_set(tmp_path / "data")
    assert [line for line in get.said if "trying again in 0 s" in line], "and whoever waits hears why"


@pytest.mark.parametrize("harm", ["delete", "alter", "empty marker", "no manifest"])
def test_damage_after_verification(get, wanted, tmp_path, harm, server):
    folder = get()
    victim = folder / sorted(n for n in wanted if n.endswith(".png"))[3]
    {"delete": victim.unlink, "alter": lambda: victim.write_bytes(victim.read_bytes()[:-1] + b"!"),
     "empty marker": lambda: (folder / ".unified_onehead.json").write_text(""),
     "no manifest": (folder / "manifest.json").unlink}[harm]()
    with pytest.raises(InputError, match="no source"):
        get(urls=["http://127.0.0.1:9/x.zip"])
    assert any("not whole" in line for line in get.said) and (folder / "mini_coco_det").exists(), "what is left stays"
    assert is_whole(get(), wanted)


def test_another_file_than_the_first_time(get, server, minis, tmp_path):
    folder = get()
    (folder / "mini_voc_seg/classes.txt").unlink()
    other = make_synthetic(tmp_path / "other", seed=1, n_train=20, n_val=20, side=32)
    server.files["/minis.zip"] = zip_of(other)
    with pytest.raises(InputError, match="damaged or another file"):
        get()


def test_own_data_is_not_touched(get, minis, tmp_path):
    own = Path(shutil.copytree(minis, tmp_path / "data"))
    (own / "synthetic.json").unlink()
    (own / ".synthetic.lock").unlink()  # hidden, as the lock of `get` is
    before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file()}
    assert get() == own and "used as it is" in get.said[-1]
    shutil.rmtree(own / "imagenette_160")
    with pytest.raises(InputError, match="nothing of it was touched"):
        get()
    after = {p: p.read_bytes() for p in own.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert after == {p: data for p, data in before.items() if "imagenette" not in str(p)}


def test_own_data_under_other_names(get, minis, tmp_path, server):
    own = Path(shutil.copytree(minis, tmp_path / "data"))
    (own / "synthetic.json").unlink()
    for number, name in enumerate(FOLDERS.values()):
        (own / name).rename(own / f"my set {number}")
    assert get() == own and "used as it is" in get.said[-1] and server.log == []
    assert holds_no_set(own), "nothing was put beside it that would be read in its place"


# ---- archives in parts -------------------------------------------------------------------------------------------------

STAMP = "20240101T000000Z"


def dealt(minis, folder, number=3, name="minis", top="minis/", seed=0, leave_out=()):
    "The minis as Google Drive sends a folder: several zips, the files dealt out at random; a seed gives the same."
    files = [p for p in sorted(minis.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    random.Random(seed).shuffle(files)
    folder.mkdir(exist_ok=True)
    for k in range(number):
        path = folder / f"{name}-{STAMP}-{k + 1:03}.zip"
        if k + 1 not in leave_out:
            with zipfile.ZipFile(path, "w") as file:
                for member in files[k::number]:
                    file.write(member, top + member.relative_to(minis).as_posix())
    return sorted(folder.glob(f"{name}-*.zip"))


@pytest.mark.parametrize("top", ["minis/", "content/drive/MyDrive/Colab Notebooks/minis/", ""])
def test_parts_of_a_download_are_one_set(get, minis, wanted, server, tmp_path, top):
    paths = dealt(minis, tmp_path / "parts", top=top)
    for path in paths:
        server.files[f"/{path.name}"] = path.read_bytes()
    folder = get(urls=[f"{server.url}/{p.name}" for p in paths])
    assert is_whole(folder, wanted), "no class and no mask is lost"
    told = [line for line in get.said if line.startswith("put together: ")]
    assert len(told) == 1 and all(p.name in told[0] and p.name in read_manifest(folder)["origin"] for p in paths)


def test_parts_in_the_drive_folder(get, minis, wanted, tmp_path):
    dealt(minis, tmp_path / "drive")
    listed = sorted(os.listdir(tmp_path / "drive"))
    assert is_whole(get(drive=tmp_path / "drive", urls=()), wanted)
    assert sorted(os.listdir(tmp_path / "drive")) == listed, "a person's folder is left as it is"
    for name in FOLDERS.values():  # the folder of each dataset downloaded by itself
        dealt(minis / name, tmp_path / "each", 2, name, f"{name}/")
    assert is_whole(get("each_set", drive=tmp_path / "each", urls=()), wanted)


def test_a_missing_part_is_named(get, minis, server, tmp_path):
    server.files["/minis.zip"] = b"another source, which must not be asked in its place"
    dealt(minis, tmp_path / "drive", leave_out=(2,))
    with pytest.raises(InputError, match=f"minis-{STAMP}-001.zip, minis-{STAMP}-003.zip: part 002 of this download is missing"):
        get(drive=tmp_path / "drive")
    paths = dealt(minis, tmp_path / "first", 4, leave_out=(1, 3))
    with pytest.raises(InputError, match="part 001, 003 of this download is missing"):
        get(urls=[str(paths[0])])
    with pytest.raises(InputError, match="part 001 of this download is missing"):
        get(urls=[f"{server.url}/minis-{STAMP}-002.zip?download=1"])
    assert server.log == [] and holds_no_set(tmp_path / "data")


def test_one_part_given_takes_its_siblings(get, minis, wanted, tmp_path):
    paths = dealt(minis, tmp_path / "downloads")
    assert is_whole(get(urls=[str(paths[1])]), wanted)
    assert sum("taken along" in line for line in get.said) == 2


def test_parts_that_overlap_or_contradict(get, minis, wanted, tmp_path):
    one, two = dealt(minis, tmp_path / "parts", 2)
    member = "minis/mini_voc_seg/classes.txt"
    with zipfile.ZipFile(one) as file:
        inside = member in file.namelist()
    for path, content in ((two if inside else one, (minis / "mini_voc_seg/classes.txt").read_bytes()), (None, b"another list")):
        other = path or tmp_path / "parts/extra.zip"
        with zipfile.ZipFile(other, "a") as file:
            file.writestr(member, content)
        if path:
            assert is_whole(get(urls=[str(one), str(two)]), wanted), "the same bytes twice are one file"
    with pytest.raises(InputError, match=r"-00\d.zip and .*extra.zip both hold mini_voc_seg/classes.txt, and the two differ"):
        get("second", urls=[str(one), str(two), str(tmp_path / "parts/extra.zip")])


def test_archives_without_names_of_parts(get, minis, wanted, tmp_path):
    "Images in one archive, masks in another under another top folder and in capitals, the rest in a third."
    files = [p for p in sorted(minis.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    rules = {"a.zip": ("minis/", lambda n: "JPEGImages" in n), "b.zip": ("MyDrive/copy/", lambda n: "SegmentationClass" in n),
             "c (1).zip": ("MINIS/", lambda n: "JPEGImages" not in n and "SegmentationClass" not in n)}
    for name, (top, rule) in rules.items():
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in files:
                if rule(path.relative_to(minis).as_posix()):
                    file.write(path, top + path.relative_to(minis).as_posix())
    assert is_whole(get(urls=[str(tmp_path / name) for name in rules]), wanted)


def test_bare_archives_of_datasets_are_never_mixed(get, minis, wanted, tmp_path):
    "Each holds train/ and val/ and nothing above; two have the same name in different folders."
    for name, place in zip(FOLDERS.values(), ("x/data.zip", "y/data.zip", "imagenette.zip")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(zip_of(minis / name, ""))
    assert is_whole(get(urls=[str(tmp_path / place) for place in ("x/data.zip", "y/data.zip", "imagenette.zip")]), wanted)


@pytest.mark.parametrize("names, words", [
    (["minis.zip.001", "minis.zip.002"], "cat minis.zip"), (["minis.zip", "minis.z01"], "zip -s 0"),
    (["minis.7z.001"], "cat minis.7z"),
    ([f"minis-{STAMP}-001.zip", "minis-20240202T000000Z-001.zip"], "parts of two downloads")])
def test_what_must_be_settled_first(get, tmp_path, names, words):
    (tmp_path / "drive").mkdir()
    for name in names:
        (tmp_path / "drive" / name).write_bytes(b"PK")
    with pytest.raises(Unclear, match=words):
        get(drive=tmp_path / "drive")
    if "two downloads" not in words:
        with pytest.raises(Unclear, match=words):
            get(urls=[str(tmp_path / "drive" / name) for name in names])
    assert holds_no_set(tmp_path / "data")


def test_a_file_that_a_browser_named_anew(get, archive, wanted, tmp_path):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/Minis (1).zip").write_bytes(archive)
    assert is_whole(get(drive=tmp_path / "drive", urls=()), wanted)
    (tmp_path / "drive/minis.zip").write_bytes(archive)
    assert is_whole(get("same", drive=tmp_path / "drive", urls=()), wanted)
    (tmp_path / "drive/minis.zip").write_bytes(archive[:-1])
    with pytest.raises(InputError, match="are both there, and they differ"):
        get("other", drive=tmp_path / "drive", urls=())


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["stat", "listdir"])
def test_a_drive_that_does_not_answer(get, wanted, monkeypatch, tmp_path, number, call):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/minis.zip").write_bytes(b"")
    real = getattr(os, call)

    def refusing(path, *args, **options):
        if str(path).startswith(str(tmp_path / "drive")):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, call, refusing)
    with pytest.raises(InputError) as caught:
        get(drive=tmp_path / "drive", urls=())
    message = str(caught.value)
    assert f"{tmp_path}/drive" in message and "cannot be read or written now" in message and "try again" in message
    assert is_whole(get(drive=tmp_path / "drive"), wanted), "another source can still give the set"


def test_links_that_lead_nowhere(get, tmp_path):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/minis.zip").symlink_to(tmp_path / "moved.zip")
    with pytest.raises(InputError, match=r"drive/minis.zip: a link to .*moved.zip, which is not there"):
        get(drive=tmp_path / "drive", urls=())
    with pytest.raises(InputError, match=r"drive/minis.zip: a link to .*moved.zip, which is not there"):
        get(urls=[str(tmp_path / "drive/minis.zip")])


# ---- other processes ---------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")  # a fork of this process, in which a server thread runs, might hang
posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


def begun(action, *args):
    "Run a function of this file in a process of its own."
    process = SPAWN.Process(target=action, args=args)
    process.start()
    return process


def end_of(process) -> int:
    "How a process ended: its exit code, or minus the signal."
    process.join(120)
    return process.exitcode


def simply_get(folder, url, say=print, net=QUICK):
    return get_data(folder, urls=(url,), drive="", official=NOWHERE, net=net, say=say)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_unpacking(folder, url):
    names, safe_parts = [], archives.safe_parts

    def dying(name, archive):
        names.append(name)
        if len(names) == 40:
            die()
        return safe_parts(name, archive)

    archives.safe_parts = dying
    simply_get(folder, url)


def die_placing(folder, url, step):
    "Before the given step between a whole staged set and a whole set in its place: markers, renames, the last clearing up."
    steps, place = [], fetch.place

    def counted(function):
        def wrapped(*args, **options):
            steps.append(function)
            if len(steps) == step:
                die()
            return function(*args, **options)
        return wrapped

    def watched(*args):
        Path.rename, shutil.rmtree = counted(Path.rename), counted(shutil.rmtree)
        place(*args)

    fetch.place, job.write_state = watched, counted(job.write_state)
    simply_get(folder, url)


def without_room(folder, url):
    "The kernel refuses to write more than 300 bytes into any file, from the moment when the set is written."
    import resource

    gather = job.gather

    def little_room(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        return gather(*args)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    job.gather = little_room
    with pytest.raises(DiskFull, match="the disk is full"):
        simply_get(folder, url)


def get_aloud(folder, url, said):
    def say(words):
        with open(said, "a") as file:
            file.write(words + "\n")

    simply_get(folder, url, say, Net(timeout=(10, 100), retries=0))
    assert whats_wrong(folder) == ""


@posix
def test_killed_during_unpacking(get, wanted, server, tmp_path):
    assert end_of(begun(die_unpacking, tmp_path / "data", f"{server.url}/minis.zip")) == -signal.SIGKILL
    assert list((tmp_path / "data/.work").rglob("*.unpacking")) and holds_no_set(tmp_path / "data")
    server.log.clear()
    assert is_whole(get(), wanted) and server.log == [], "the download was whole and is not repeated"


@posix
@pytest.mark.parametrize("step", [1, 2, 4, 7, 9])
def test_killed_while_moving_into_place(get, wanted, server, tmp_path, step):
    assert end_of(begun(die_placing, tmp_path / "data", f"{server.url}/minis.zip", step)) == -signal.SIGKILL
    assert is_whole(get(), wanted)


@posix
def test_disk_full_while_writing_the_set(get, wanted, server, tmp_path):
    assert end_of(begun(without_room, tmp_path / "data", f"{server.url}/minis.zip")) == 0
    assert holds_no_set(tmp_path / "data") and is_whole(get(), wanted)


def test_disk_full_while_unpacking(get, monkeypatch, tmp_path, wanted):
    def full(name, archive):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "safe_parts", full)
        with pytest.raises(DiskFull, match="the disk is full"):
            get()
    assert holds_no_set(tmp_path / "data") and is_whole(get(), wanted)


def until(condition, process) -> None:
    "Wait for something that another process does."
    for _ in range(2400):
        if condition():
            return
        assert process.exitcode is None, "it ended before"
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_two_processes_at_once(get, wanted, server, tmp_path):
    "The server holds the first one's answer back until the second one waits for it."
    server.faults["/minis.zip"], said = ["hold"], [tmp_path / "said0", tmp_path / "said1"]
    both = [begun(get_aloud, tmp_path / "data", f"{server.url}/minis.zip", said[0])]
    until(lambda: server.log, both[0])
    both.append(begun(get_aloud, tmp_path / "data", f"{server.url}/minis.zip", said[1]))
    until(lambda: said[1].exists() and "another process is getting the data" in said[1].read_text(), both[1])
    server.release.set()
    assert [end_of(process) for process in both] == [0, 0]
    assert len(server.log) == 1 and "nothing to get" in said[1].read_text() and "nothing to get" not in said[0].read_text()
    assert is_whole(tmp_path / "data", wanted)


def test_command_line(server, archive, tmp_path, capsys):
    server.files["/minis.zip"] = archive
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["data", "get", "--to", "data", "--url", f"{server.url}/minis.zip", "--drive", "kept"]
    done = subprocess.run([Path(sys.executable).parent / "unified-onehead", *words], capture_output=True, text=True, timeout=120,
                          cwd=tmp_path, env=env)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert (tmp_path / "data/manifest.json").is_file() and (tmp_path / "kept/archives.json").is_file()
    check = ["data", "check", "--data-root", str(tmp_path / "data")]
    assert cli.main(check) == 0 and "problems: none" in capsys.readouterr().out
    next((tmp_path / "data/imagenette_160/val").rglob("*.JPEG")).unlink()
    mask = sorted((tmp_path / "data/mini_voc_seg/train/SegmentationClass").iterdir())[2]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(mask)
    assert cli.main(check) == 1
    said = capsys.readouterr().out
    assert "1 files missing (the first: imagenette_160/val/" in said and "1 files altered (the first: mini_voc_seg/" in said
    assert "delete manifest.json" in said
    assert cli.main(["data", "show", "--data-root", str(tmp_path / "data"), "--images", "-3"]) == 2
    assert "--images -3: at least one image" in capsys.readouterr().err
    assert cli.main(["data", "get", "--to", str(tmp_path / "data2"), "--source", "zip", "--url", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "neither a file" in said and "Traceback" not in said


# ---- Drive as a folder -------------------------------------------------------------------------------------------------

def test_second_session_needs_no_download(get, wanted, server, tmp_path):
    drive = tmp_path / "drive"
    get("session1", drive=drive)
    assert sorted(os.listdir(drive)) == ["archives.json", *sorted(f"{n}.zip" for n in FOLDERS.values())]
    server.log.clear()
    assert is_whole(get("session2", drive=drive, urls=()), wanted) and server.log == []


def test_damaged_archive_on_drive_is_replaced(get, wanted, tmp_path):
    drive = tmp_path / "drive"
    get("session1", drive=drive)
    good = (drive / "mini_voc_seg.zip").read_bytes()
    (drive / "mini_voc_seg.zip").write_bytes(b"")  # as Drive shows files at times
    assert is_whole(get("session2", drive=drive), wanted)
    assert any("skipped drive" in line and "not the file that was recorded" in line for line in get.said)
    assert (drive / "mini_voc_seg.zip").read_bytes() == good


def test_own_copy_on_drive(get, wanted, archive, tmp_path):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/minis.zip").write_bytes(archive)
    assert is_whole(get(drive=tmp_path / "drive", urls=()), wanted)
    assert os.listdir(tmp_path / "drive") == ["minis.zip"], "a person's folder is left as it is"


def test_other_set_does_not_replace_the_archives(get, tmp_path):
    drive = tmp_path / "drive"
    get("session1", drive=drive)
    before = {p.name: p.read_bytes() for p in drive.iterdir()}
    names = tuple(read_minis(tmp_path / "session1").classes["det"][:4])
    fewer = get("fewer", drive=drive, det_classes=names)
    assert read_minis(fewer).classes["det"] == list(names), "prepared anew from the archives"
    assert {p.name: p.read_bytes() for p in drive.iterdir()} == before
    assert any("keeps the archives of another set" in line for line in get.said)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Colab as far as the package sees it: modules of that name and a mountpoint, here below a temporary folder. Its `mount`
    refuses, as the real one does, when the mountpoint holds files; `colab.refusal` is what the person's answer makes it raise."""
    stub = SimpleNamespace(refusal=None, asked=[], point=tmp_path / "content/drive")
    stub.point.parent.mkdir()

    def mount(point):
        stub.asked.append(point)
        if (Path(point) / "MyDrive").is_dir():
            return
        if Path(point).exists() and os.listdir(point):
            raise ValueError("Mountpoint must not already contain files")
        if stub.refusal:
            raise stub.refusal
        (Path(point) / "MyDrive").mkdir(parents=True)

    def new_machine():
        "The session ends: the local disk is empty, what is on Drive stays there."
        (tmp_path / "data").rename(tmp_path / f"gone{len(list(tmp_path.glob('gone*')))}")

    stub.new_machine, modules = new_machine, {name: ModuleType(name) for name in ("google", "google.colab")}
    modules["google.colab"].drive = SimpleNamespace(mount=mount)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("UNIFIED_ONEHEAD_COLAB", "1")
    monkeypatch.setattr(drive, "MOUNT", str(stub.point))
    return stub


def test_colab_second_session_needs_no_download(colab, get, wanted, server):
    said = []
    assert drive.mount_drive(said.append) == colab.point / "MyDrive/unified_onehead" and said == []
    get(drive="auto")
    kept = sorted(p.relative_to(colab.point).as_posix() for p in colab.point.rglob("*") if p.is_file())
    folder = "MyDrive/unified_onehead/data"
    assert kept == [f"{folder}/archives.json", *sorted(f"{folder}/{n}.zip" for n in FOLDERS.values())], "one file per dataset"
    colab.new_machine()
    server.log.clear()
    assert drive.mount_drive(said.append) and is_whole(get(drive="auto", urls=()), wanted)
    assert server.log == [] and said == [] and len(colab.asked) == 2


@pytest.mark.parametrize("refusal", [type("MessageError", (Exception,), {})("credential propagation was unsuccessful"),
                                     ValueError("mount failed"), NotImplementedError("google.colab.drive is unsupported")])
def test_colab_mount_refused(colab, get, wanted, refusal):
    said, colab.refusal = [], refusal
    assert drive.mount_drive(said.append) is None
    assert len(said) == 1 and said[0].startswith("WARNING: Drive was not mounted") and str(refusal) in said[0]
    assert is_whole(get(drive="auto"), wanted) and not [line for line in get.said if line.startswith("WARNING")]
    get("elsewhere", drive=colab.point / "MyDrive/mine")
    assert sum(line.startswith("WARNING") and "not mounted" in line for line in get.said) == 1
    assert not colab.point.exists(), "nothing was written below the mountpoint, so it can still be mounted"
    colab.refusal = None
    assert drive.mount_drive(said.append) == colab.point / "MyDrive/unified_onehead" and len(said) == 1


def test_colab_nothing_is_written_before_mounting(colab, get, wanted):
    "Data first, Drive afterwards: the order that makes the real mount fail when anything lies below its mountpoint."
    assert is_whole(get(drive="auto"), wanted) and not colab.point.exists()
    assert drive.mount_drive() and is_whole(get(drive="auto", urls=()), wanted)
    assert (colab.point / "MyDrive/unified_onehead/data/archives.json").is_file(), "what was there already is kept now"
    with pytest.raises(InputError, match="too slow"):
        get(colab.point / "MyDrive/data")


def test_drive_that_fails_costs_a_warning(colab, get, wanted, monkeypatch):
    drive.mount_drive()
    copy, broken = job.copy_verified, OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def failing(source, target, expected=""):
        if drive.on_drive(target):
            raise broken
        return copy(source, target, expected)

    for module in (job, fetch):
        monkeypatch.setattr(module, "copy_verified", failing)
    assert is_whole(get(drive="auto"), wanted)
    assert sum("could not be kept" in line and "not connected" in line for line in get.said) == 1
    colab.new_machine()
    for module in (job, fetch):
        monkeypatch.setattr(module, "copy_verified", copy)
    assert is_whole(get(drive="auto"), wanted), "archives that a session was writing when Drive failed are not believed"
    assert any("skipped drive" in line and "cut while it wrote" in line for line in get.said)
    colab.new_machine()
    assert is_whole(get(drive="auto", urls=()), wanted), "and were written again"


# ---- the official sources ----------------------------------------------------------------------------------------------

def picture(seed, side=40):
    out, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (7, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((side, side + 8), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def official_voc(rng):
    "VOCtrainval as a tar: lists, annotations for more images than have masks, one listed image without a mask."
    top, files, lists = "VOCdevkit/VOC2012", [], {"train": [], "val": []}
    for split, year in (("train", 2007), ("val", 2008)):
        for k in range(40):
            name, ids = f"{year}_{k:06d}", sorted({k % 20 + 1, rng.randint(1, 20)})
            things = "".join(f"<object><name>{CLASSES['seg'][i - 1]}</name><part><name>head</name></part></object>" for i in ids)
            mask = np.zeros((48, 40), np.uint8)
            for row, i in enumerate(ids):
                mask[row * 9:row * 9 + 8] = i
            mask[-1] = 255
            png = io.BytesIO()
            Image.fromarray(mask).save(png, "PNG")
            lists[split].append(name)
            files += [(f"Annotations/{name}.xml", f"<annotation>{things}</annotation>".encode()),
                      (f"JPEGImages/{name}.jpg", picture(year * 1000 + k)), (f"SegmentationClass/{name}.png", png.getvalue())]
    files += [("Annotations/2009_000001.xml", b"<annotation><object><name>cow</name></object></annotation>"),
              ("JPEGImages/2009_000001.jpg", picture(9))]  # in no segmentation list
    files += [(f"ImageSets/Segmentation/{s}.txt", "\n".join([*names, ""]).encode()) for s, names in lists.items()]
    files = [(n, d) for n, d in files if n != "SegmentationClass/2008_000003.png"]
    return tar_bytes("w", *[(f"{top}/{name}", data, tarfile.REGTYPE, "") for name, data in sorted(files)]) + bytes(4096)


def official_coco(rng, server, twin):
    "annotations_trainval2017.zip and the pictures: crowds, other classes, a picture that VOC has, one that is gone."
    out = io.BytesIO()
    categories = [{"id": 2 * k + 1, "name": n} for k, n in enumerate((*CLASSES["det"], "train", "zebra"))]
    with zipfile.ZipFile(out, "w") as file:
        for base, split in ((1000, "train"), (5000, "val")):
            images, notes = [], []
            for k in range(60):
                i = base + k
                name = f"{i:012d}.jpg"
                images.append({"id": i, "file_name": name, "width": 40, "height": 48, "license": 3,
                               "coco_url": f"{server.url}/{split}2017/{name}",
                               "flickr_url": f"http://farm1.staticflickr.com/1/{i}_a_z.jpg"})
                server.files[f"/{split}2017/{name}"] = twin if (split, k) == ("train", 0) else picture(i)
                for c, crowd in ((k % 12, 0), (rng.randrange(12), int(k % 9 == 0))):
                    box = [2, 2, 20 + k % 8, 30] if not crowd else [0, 0, 40, 48]
                    notes.append({"id": len(notes) + base * 10, "image_id": i, "category_id": 2 * c + 1, "bbox": box, "area": 600,
                                  "iscrowd": crowd, "segmentation": {"counts": [1], "size": [48, 40]} if crowd else [[0] * 8]})
            file.writestr(f"annotations/instances_{split}2017.json",
                          json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return out.getvalue()


def official_nette():
    "imagenette2-160.tgz with its table of noisy labels."
    rows, files = ["path,noisy_labels_0,noisy_labels_1,noisy_labels_5,noisy_labels_25,noisy_labels_50,is_valid"], []
    for number, wnid in enumerate(sorted(WNIDS)):
        for split, count in (("train", 5), ("val", 4)):
            for k in range(count):
                name = f"{split}/{wnid}/ILSVRC2012_val_{number}{k}.JPEG" if k == 0 else f"{split}/{wnid}/{wnid}_{split}{k}.JPEG"
                rows.append(f"{name},{wnid},{wnid},{wnid},n03417042,n03417042,{split == 'val'}")
                data = picture(900_000 + number * 100 + k + 50 * (split == "val"))
                files.append((f"imagenette2-160/{name}", data, tarfile.REGTYPE, ""))
    return tar_bytes("w:gz", ("imagenette2-160/noisy_imagenette.csv", "\n".join(rows).encode(), tarfile.REGTYPE, ""), *files)


@pytest.fixture
def official(server):
    "The three official sources in small, with the real files' quirks."
    rng, rule = random.Random(0), Rule(n_train=20, n_val=20, reserve=12, det_min=1, seg_min=1)
    twin = io.BytesIO()
    Image.open(io.BytesIO(picture(2007 * 1000))).resize((80, 96)).save(twin, "JPEG", quality=80)  # VOC's first, saved anew
    server.files |= {"/voc.tar": official_voc(rng), "/coco.zip": official_coco(rng, server, twin.getvalue()),
                     "/nette.tgz": official_nette()}
    md5 = {name: hashlib.md5(server.files[name]).hexdigest() for name in ("/voc.tar", "/coco.zip", "/nette.tgz")}
    return Official(*((server.url + name, md5[name]) for name in ("/coco.zip", "/voc.tar", "/nette.tgz")), rule)


def test_official_draw(get, server, official, tmp_path):
    server.faults["/voc.tar"] = [None, ("cut", 100_000), None, ("cut", 150_000)]  # the first: whether the host is there
    server.faults["/coco.zip"] = [None, ("cut", 1000)]
    gone = "/val2017/000000005003.jpg"
    del server.files[gone]
    folder = get("one", official=official, urls=())
    assert whats_wrong(folder) == "" and check_minis(folder).ok, check_minis(folder).text()
    assert 1 < server.busiest <= QUICK.connections, "pictures come side by side, and not too many at once"
    counts = {task: {s: len(r) for s, r in parts.items()} for task, parts in read_minis(folder).records.items()}
    assert counts == {task: {"train": 20, "val": 20} for task in FOLDERS}
    draw = json.loads((folder / "draw.json").read_text())
    names = {task: [e["name"] for s in parts for e in parts[s]] for task, parts in draw["images"].items()}
    assert draw["unmet"] == [] and all(len(set(n)) == 40 for n in names.values())
    assert "2009_000001" not in names["seg"], "an image without a mask is no candidate"
    assert "2008_000003" not in names["seg"], "the mask is missing in the archive: a reserve takes its place"
    assert gone.rpartition("/")[2] not in names["det"]
    both = {"2007_000000", "000000001000.jpg"} & {*names["seg"], *names["det"]}
    assert len(both) < 2, "one picture in two tasks"
    assert {e["labels"][0] for e in draw["images"]["cls"]["val"]} == set(WNIDS)
    labels = [json.loads((folder / f"mini_coco_det/{s}/labels.json").read_text()) for s in ("train", "val")]
    assert labels[0]["categories"] == labels[1]["categories"] and len(labels[0]["categories"]) == 10
    assert any(n["iscrowd"] for n in labels[0]["annotations"] + labels[1]["annotations"])
    again = get("two", official=official, urls=())
    assert (again / "draw.json").read_bytes() == (folder / "draw.json").read_bytes(), "the same draw, the same bytes"
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_official_draw_survives_drive(get, server, official, tmp_path):
    first = get("one", official=official, urls=(), drive=tmp_path / "drive")
    server.log.clear()
    second = get("two", drive=tmp_path / "drive", urls=())
    assert server.log == [] and (second / "draw.json").read_bytes() == (first / "draw.json").read_bytes()


def test_every_official_host_that_is_down_is_named(get, server, official):
    del server.files["/voc.tar"]
    server.faults["/nette.tgz"] = [503, "always"]
    with pytest.raises(InputError) as caught:
        get(official=official, urls=())
    message = str(caught.value)
    assert "voc.tar: status 404" in message and "nette.tgz: status 503" in message and "coco.zip" not in message
    assert "/coco.zip" in {path for path, _ in server.log}, "it was asked, and is there"


def official_files(seed, cats=200):
    "The three official indexes at full size, as the hosts publish them, their entries in a random order; no pictures."
    rng, order, url = random.Random(3), random.Random(seed), "http://images.cocodataset.org"
    files = {"coco": {}, "lists": {}, "xml": {}}
    categories = [{"id": 3 * k + 1, "name": n} for k, n in enumerate((*CLASSES["det"], "zebra"))]
    for split, base, count in (("train", 0, 1500), ("val", 50_000, 500)):
        images = [{"id": base + k, "file_name": f"{base + k:012d}.jpg", "width": 640, "height": 480, "license": 1,
                   "coco_url": f"{url}/{split}2017/{base + k:012d}.jpg",
                   "flickr_url": f"http://farm9.staticflickr.com/8/{base + k}_a_z.jpg"} for k in range(count)]
        notes = []
        for image in images:
            for _ in range(rng.randint(0, 4)):  # some images have no box at all
                c, crowd = rng.randrange(11), int(rng.random() < 0.1)
                rare = c == CLASSES["det"].index("cat") and split == "val" and image["id"] >= base + cats
                segmentation = {"counts": [9], "size": [480, 640]} if crowd else [[1, 2, 3, 4, 5, 6]]
                notes.append({"id": len(notes) + 1, "image_id": image["id"], "category_id": 3 * (0 if rare else c) + 1,
                              "bbox": [1.5, 2.5, rng.choice((0.5, 60.25)), 80], "area": 99.5, "iscrowd": crowd,
                              "segmentation": segmentation})
        order.shuffle(images)
        order.shuffle(notes)
        files["coco"][split] = json.dumps({"info": {}, "images": images, "annotations": notes, "categories": categories})
        ids = [f"{2007 + rng.randrange(5)}_{base + k:06d}" for k in range(700)]
        for name in ids:
            things = "".join(f"<object><name>{c}</name><part><name>head</name></part></object>"
                             for c in rng.choices(CLASSES["seg"], k=rng.randint(1, 3)))
            source = "<source><image>flickr</image><flickrid>7</flickrid></source>" if name == ids[0] else ""
            files["xml"][name] = f"<annotation>{source}{things}</annotation>".encode()
            files["xml"][f"{name}9"] = b"<annotation><object><name>cow</name></object></annotation>"  # without a mask
        order.shuffle(ids)
        files["lists"][split] = "\n".join([*ids, "2012_999999", ""])  # listed, and without an annotation
    rows = [f"{s}/{w}/{w}_{k}.JPEG,{w},{w},{w},n03417042,n03417042,{s == 'val'}" for w in sorted(WNIDS)
            for s, count in (("train", 90), ("val", 40)) for k in range(count)]
    order.shuffle(rows)
    header = "path,noisy_labels_0,noisy_labels_1,noisy_labels_5,noisy_labels_25,noisy_labels_50,is_valid"
    return files, "\n".join([header, *rows])


def manifest_of(files, table) -> dict:
    return make_manifest({"det": {s: coco_index(json.loads(text)) for s, text in files["coco"].items()},
                          "seg": voc_index(files["lists"], files["xml"]), "cls": imagenette_index(table)})


def test_rule_on_official_index_files():
    made = manifest_of(*official_files(1))
    assert made["unmet"] == [] and manifest_bytes(made) == manifest_bytes(manifest_of(*official_files(2))), "whatever the order"
    for task, least in (("seg", 2), ("det", 5), ("cls", 6)):
        images = made["images"][task]
        assert [len(images["train"]), len(images["val"])] == [240, 60]
        assert not {e["name"] for e in images["train"]} & {e["name"] for e in images["val"]}
        shown = [sum(c in e["labels"] for e in images["val"]) for c in CLASSES[task]]
        assert min(shown) >= least, "counted here, not by the rule's own judge"
    assert {sum(w in e["labels"] for e in made["images"]["cls"]["train"]) for w in WNIDS} == {24}
    flickr = [e["flickr"] for t in ("seg", "det") for s in ("train", "val") for e in made["images"][t][s] if e["flickr"]]
    assert len(flickr) == len(set(flickr)), "no photograph of Flickr twice"
    assert not [e for s in ("train", "val") for e in made["images"]["seg"][s] if e["name"].endswith("9") and len(e["name"]) > 11]


def test_rule_says_what_it_cannot_meet():
    (sentence,) = manifest_of(*official_files(1, cats=3))["unmet"]
    assert sentence.startswith("detection, val: ") and sentence.endswith("images show cat, 5 are asked for")


def test_official_interrupted_goes_on(get, server, official):
    server.faults["/voc.tar"] = [None, None, 404]  # the host is there, the index is read, then the host goes away
    with pytest.raises(InputError, match="official: .*voc.tar: status 404"):
        get(official=official, urls=())
    server.log.clear()
    assert whats_wrong(get(official=official, urls=())) == ""
    assert {path for path, _ in server.log} == {"/voc.tar"}, "what was whole is not asked for again"


def test_official_damage_is_noticed(get, server, official, tmp_path):
    server.files["/voc.tar"] = server.files["/voc.tar"][:-1] + b"!"
    with pytest.raises(InputError, match="voc.tar: md5"):
        get(official=official, urls=())
    assert holds_no_set(tmp_path / "data")


# ---- preparing ---------------------------------------------------------------------------------------------------------

def test_prepared_set_is_accepted_as_it_is(get, minis, tmp_path, server):
    prepared = prepare(minis, tmp_path / "prepared", max_side=32)
    server.files["/minis.zip"] = zip_of(prepared)
    folder = get(max_side=32)
    assert (folder / "manifest.json").read_bytes() == (prepared / "manifest.json").read_bytes()
    (prepared / "mini_voc_seg/classes.txt").write_text("altered")
    server.files["/other.zip"] = zip_of(prepared)
    with pytest.raises(InputError, match="not what its own manifest says"):
        get("other", urls=[f"{server.url}/other.zip"])


def test_check_finds_shared_images(minis, tmp_path):
    copy = Path(shutil.copytree(minis, tmp_path / "copy"))
    assert not [w for w in check_minis(copy).warnings if "two sets" in w]
    source = sorted((copy / "mini_voc_seg/val/JPEGImages").iterdir())[0]
    with Image.open(source) as image:
        image.save(copy / "imagenette_160/train/plain_red/new_name.JPEG", quality=80)
    assert sum("new_name.JPEG" in w and "one image in two sets" in w for w in check_minis(copy).warnings) == 1


@pytest.mark.skipif(not os.environ.get("UNIFIED_ONEHEAD_REAL_DATA"), reason="UNIFIED_ONEHEAD_REAL_DATA is not set")
def test_real_minis_under_60_mb(tmp_path):
    folder = prepare(os.environ["UNIFIED_ONEHEAD_REAL_DATA"], tmp_path / "out", max_side=512)
    report = check_minis(folder)
    assert report.ok and not any(report.leaks.values()) and not [w for w in report.warnings if "two sets" in w]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 60e6
