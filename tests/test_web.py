"""The demo and the server from outside: the page is built and used, the server started as a process, asked, and ended.

Needs the extras `demo` and `serve`, each test its own; the one in a browser also playwright and a Chromium."""
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.deploy.demo import build_demo, launch
from unified_onehead.deploy.predictor import Predictor
from unified_onehead.deploy.serve import make_app, serve
from unified_onehead.learn.checkpoint import save_model
from unified_onehead.model.backbone import build_backbone
from unified_onehead.model.net import OneHead, class_counts

NAMES = {"seg": ["background", "cat"], "det": ["cat", "dog"], "cls": ["tench", "church", "parachute"]}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a network of random weights, and photographs that are drawn."
    folder = tmp_path_factory.mktemp("web")
    torch.manual_seed(0)
    net = OneHead(build_backbone()[0], class_counts(NAMES), 24)
    save_model(folder / "model.pt", net, replace_fields(preset("smoke"), width=24), NAMES)
    make_synthetic(folder / "minis", seed=1, n_train=10, n_val=10, side=96)
    (folder / "letter.txt").write_text("Dear all, see you on Monday.")
    (folder / "letter.jpg").write_text("Dear all, see you on Monday.")
    return folder


@pytest.fixture(scope="module")
def photos(home):
    return sorted((home / "minis" / "mini_coco_det" / "val").rglob("*.jpg"))


@pytest.fixture(scope="module")
def predictor(home):
    return Predictor(home / "model.pt", "cpu")


def same(answer: dict, result) -> bool:
    want = json.loads(json.dumps(result.to_dict(mask="png" in answer["mask"])))
    return all(answer[key] == want[key] for key in want if key not in ("path", "speed"))


# ---- the server, in this process


@pytest.fixture(scope="module")
def ask(predictor):
    pytest.importorskip("fastapi")
    pytest.importorskip("python_multipart")
    return client(predictor)


def client(predictor, **limits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another version of httpx
        from fastapi.testclient import TestClient
        return TestClient(make_app(predictor, **limits), raise_server_exceptions=False)


def test_both_ways_of_sending_give_what_predictor_says(ask, predictor, photos):
    for photo in photos[:3]:
        want = predictor(photo, conf=0.02)
        for given in ({"files": {"file": (photo.name, photo.read_bytes())}},
                      {"content": photo.read_bytes(), "headers": {"Content-Type": "image/jpeg"}}):
            answer = ask.post("/predict?conf=0.02&mask=true", **given)
            assert answer.status_code == 200 and same(answer.json(), want)


@pytest.mark.parametrize("kind, status, part", [
    ("empty", 422, "street.jpg: is empty"), ("text", 422, "no format of photographs"), ("truncated", 422, "truncated"),
    ("garbage behind a header", 422, "cannot be decoded"), ("svg", 422, "no format of photographs"),
    ("postscript", 422, "no format of photographs"), ("bomb", 413, "pixels"), ("many bytes", 413, "more than 20 MB")])
def test_a_bad_upload_gets_a_sentence_and_the_server_lives(ask, photos, kind, status, part):
    whole = photos[0].read_bytes()
    flat = io.BytesIO()
    Image.new("1", (9000, 9000)).save(flat, "PNG")  # few bytes, 81 million pixels
    data = {"empty": b"", "text": b"Dear all", "truncated": whole[:len(whole) // 2],
            "garbage behind a header": whole[:20] + bytes(500), "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "bomb": flat.getvalue(),
            "many bytes": bytes(21_000_000)}[kind]
    for given in ({"files": {"file": ("../../home/street.jpg", data)}},
                  {"content": data, "headers": {"Content-Type": "image/jpeg"}}):
        answer = ask.post("/predict", **given)
        assert answer.status_code == status and list(answer.json()) == ["detail"]
        assert part.replace("street.jpg", "street.jpg" if "files" in given else "upload") in answer.json()["detail"]
        assert "/" not in answer.json()["detail"], "no path, of this machine or another"
    assert ask.get("/health").json()["failed"] == 0 and ask.post("/predict", content=whole).status_code == 200


@pytest.mark.parametrize("given, status, part", [
    ({"files": {"picture": ("a.jpg", b"x")}}, 422, "no field file (its fields: picture)"),
    ({"files": {"file": (None, "street.jpg")}}, 422, "holds text and no file"),
    ({"data": {"file": "a.jpg"}}, 415, "content type"), ({"json": {"file": "a.jpg"}}, 415, "application/json"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "form cannot be read"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "form cannot be read"),
    ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))]}, 400, "Too many files")])
def test_a_request_that_holds_no_picture(ask, given, status, part):
    answer = ask.post("/predict", **given)
    assert answer.status_code == status and part in answer.json()["detail"], answer.text


def test_wrong_values_and_addresses(ask, photos):
    for query in ("conf=2", "conf=-0.1", "conf=nan", "conf=high", "mask=maybe"):
        answer = ask.post(f"/predict?{query}", content=photos[0].read_bytes())
        assert answer.status_code == 422 and answer.json()["detail"].startswith(query), answer.text
    assert ask.get("/predict").status_code == 405 and ask.put("/predict").status_code == 405 and ask.get("/no").status_code == 404


def test_the_limits_are_settings(predictor, photos):
    pytest.importorskip("fastapi")
    data = photos[0].read_bytes()
    height, width = np.asarray(Image.open(photos[0])).shape[:2]
    assert client(predictor, max_pixels=height * width).post("/predict", content=data).status_code == 200
    assert client(predictor, max_pixels=height * width - 1).post("/predict", content=data).status_code == 413
    assert client(predictor, max_mb=len(data) / 1e6).post("/predict", content=data).status_code == 200
    for body in (data, iter([data[:100], data[100:]])):  # of stated length, and of none
        assert client(predictor, max_mb=(len(data) - 1) / 1e6).post("/predict", content=body).status_code == 413


def test_the_description_for_programs(ask):
    description = ask.get("/openapi.json").json()
    post = description["paths"]["/predict"]["post"]
    assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "503", "504"}
    assert set(post["requestBody"]["content"]) == {"multipart/form-data", "image/jpeg", "image/png", "image/webp"}
    assert set(description["components"]["schemas"]["Box"]["properties"]) == {"name", "class", "confidence", "box"}


# ---- the server, as a process


@pytest.fixture(scope="module")
def server(home):
    pytest.importorskip("uvicorn")
    pytest.importorskip("python_multipart")
    pytest.importorskip("fastapi")
    code = ("import sys; from unified_onehead.deploy.serve import serve; "
            "serve(sys.argv[1], port=0, device='cpu', queue=32, say=lambda text: print(text, flush=True))")
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, "-c", code, str(home / "model.pt")], env={**os.environ, "PYTHONPATH": str(root)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.port = int(re.search(r":(\d+) ", process.stdout.readline().replace("http:", ""))[1])
    yield process
    process.kill()
    process.wait()


def test_many_at_once_get_the_same_answers_and_ctrl_c_ends_it(server, home, predictor, photos):
    import requests
    address = f"http://127.0.0.1:{server.port}/predict"

    def one(k):
        if k % 6 == 5:
            return requests.post(address, files={"file": b"Dear all"}, timeout=60).status_code == 422
        photo = photos[k % len(photos)]
        return same(requests.post(address, files={"file": photo.read_bytes()}, timeout=60).json(), expected[photo])

    expected = {photo: predictor(photo) for photo in photos}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(48)))
    with socket.create_connection(("127.0.0.1", server.port)) as rude:  # says more than it sends, and goes
        rude.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc")
    health = requests.get(f"http://127.0.0.1:{server.port}/health", timeout=10).json()
    assert (health["answered"], health["failed"], health["waiting"], health["model"]) == (40, 0, 0, "model.pt")
    with pytest.raises(InputError, match=f"port {server.port} of 127.0.0.1: cannot be used"):
        serve(home / "model.pt", port=server.port)
    if os.name != "nt":
        server.send_signal(signal.SIGINT)
        out, said = server.communicate(timeout=30)
        assert server.returncode == 0 and out.strip() == "ended" and "Traceback" not in said


# ---- the demo


def test_the_page_is_built_and_its_handlers_answer(predictor, photos, home):
    pytest.importorskip("gradio")
    page = build_demo(predictor)
    config = page.get_config_file()
    assert config["title"] == "One network, three answers" and page.analytics_enabled is False
    kinds = [part["type"] for part in config["components"]]
    assert kinds.count("image") == 4 and kinds.count("label") == 1 and kinds.count("downloadbutton") == 2 and "slider" in kinds
    assert not [part for part in config["dependencies"] if part["api_visibility"] == "public"], "the server is for programs"
    answer = next(fn.fn for fn in page.fns.values() if fn.name == "arrived")
    state, together, boxes, mask, probs, said = answer({"path": str(photos[0])}, 0.05)
    assert together.shape == boxes.shape == mask.shape and set(probs) == set(NAMES["cls"]) and " ms** on cpu" in said
    refused = answer({"path": str(home / "letter.jpg")}, 0.3)
    assert refused[:5] == (None,) * 5 and "letter.jpg: cannot be decoded" in refused[5] and str(home) not in refused[5]
    assert answer(None, 0.3)[5] == "Choose a picture, and its answers stand here."
    assert build_demo(predictor, examples=[str(photo) for photo in photos]).get_config_file()


def test_a_port_that_is_taken(predictor):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1: cannot be used"):
            launch(predictor, port=port, block=False)


class Finds(Predictor):
    "Says what the other says, and two boxes more, so that there is something to hide."

    def __init__(self, other):
        self.__dict__.update(vars(other))

    def __call__(self, source, conf=0.3, **given):
        result = super().__call__(source, conf=conf, **given)
        result.boxes, result.scores = np.float32([[8, 8, 60, 60], [20, 30, 70, 70]]), np.float32([0.8, 0.1])
        result.labels = np.array([0, 1])
        return result


def test_the_page_in_a_browser(predictor, photos, home, tmp_path):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = launch(Finds(predictor), port=port, block=False)
    found = {}

    def look():  # in a thread of its own: playwright refuses one where an event loop runs
        with playwright.sync_playwright() as p:
            path = next(filter(os.path.exists, ["/usr/bin/chromium", p.chromium.executable_path]), None)
            if path:
                with p.chromium.launch_persistent_context(str(tmp_path / "profile"), executable_path=path, args=FLAGS) as browser:
                    found.update(use(browser.new_page(), port, photos, home))

    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(look).result()
    finally:
        page.close()
    if not found:
        pytest.skip("no Chromium here")
    assert found["hosts"] == {f"127.0.0.1:{port}"}, "nothing comes from elsewhere"
    assert found["redrawn"] and "cannot be decoded" in found["refused"] and found["download"].endswith("_answers.json")
    assert found["width"] == 400, "nothing sticks out on a phone"


def use(page, port, photos, home) -> dict:
    "Upload, move the slider, take an example, upload what is none, and go on."
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
    page.goto(f"http://127.0.0.1:{port}/")
    page.set_input_files("#photo input[type=file]", str(photos[0]))
    for panel in ("#together img", "#boxes img", "#mask img", "#said strong"):
        page.wait_for_selector(panel, timeout=60_000)
    before = page.get_attribute("#boxes img", "src")
    number = page.locator("#conf input[type=number]")
    number.fill("0.05")
    number.press("Enter")
    page.wait_for_function("before => document.querySelector('#boxes img').src != before", arg=before, timeout=30_000)
    page.wait_for_selector("#json:not([disabled])")
    with page.expect_download() as download:
        page.click("#json")
    said = page.inner_text("#said")
    page.locator(".gallery-item, .gallery button").first.click()
    page.wait_for_function("said => document.querySelector('#said').innerText != said", arg=said, timeout=30_000)
    page.locator("#photo button[aria-label='Clear'], #photo button[aria-label='Remove Image']").first.click()
    page.wait_for_selector("#together img", state="detached")
    page.set_input_files("#photo input[type=file]", str(home / "letter.jpg"))
    page.wait_for_function("document.querySelector('#said').innerText.includes('decoded')", timeout=30_000)
    refused = page.inner_text("#said")
    page.locator("#photo button[aria-label='Clear'], #photo button[aria-label='Remove Image']").first.click()
    page.set_viewport_size({"width": 400, "height": 850})
    page.set_input_files("#photo input[type=file]", str(photos[1]))
    page.wait_for_selector("#together img", timeout=30_000)
    return {"hosts": hosts, "redrawn": True, "refused": refused, "download": download.value.suggested_filename,
            "width": page.evaluate("document.documentElement.scrollWidth")}
