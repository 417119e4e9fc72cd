"""colab.ipynb from top to bottom, as Colab runs it: a stub of google.colab, a Drive in a temporary folder, a kernel that is
killed, hosts that do not answer. The preset is `smoke`; all else is what a person gets who chooses "Run all"."""
import json
import re
import shutil
import time
import zipfile

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from unified_onehead.core.testing import zip_folder
from unified_onehead.data.synthetic import FOLDERS, make_synthetic

STUB = {"__init__.py": """
import functools
import os
from types import SimpleNamespace
from unified_onehead.fetch import drive as ours, http
from unified_onehead.run import claim, stages

ours.MOUNT = os.environ["STUB_MOUNT"]  # in the place of /content/drive
stages.wait_for_owner = functools.partial(claim.wait_for_owner, sleep=lambda s: None, told=999)  # 300 s in no time
http.time = SimpleNamespace(sleep=lambda seconds: None)  # between two tries of a host
if "STUB_CUT" in os.environ:
    fit = stages.Learner.fit_stage

    def cut(self, stage, *rest):
        "In stage 2 the machine is taken away when its first epoch is trained."
        if stage == 1:
            self.log = lambda row: os._exit(9)
        return fit(self, stage, *rest)

    stages.Learner.fit_stage = cut
""", "drive.py": """
import os
from pathlib import Path

class MessageError(Exception): pass

def mount(point):
    if "STUB_REFUSE" in os.environ:
        raise MessageError("Error: credential propagation was unsuccessful")
    (Path(point) / "MyDrive").mkdir(parents=True, exist_ok=True)
""", "_message.py": """
def blocking_request(kind, request="", timeout_sec=None):
    return {"ipynb": {"cells": [], "metadata": {"asked": kind}, "nbformat": 4, "nbformat_minor": 5}}
"""}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "minis.zip of a person's own: the three datasets, a handful of pictures each."
    folder = tmp_path_factory.mktemp("own")
    make_synthetic(folder / "made", n_train=16, n_val=12, side=64)
    for name in FOLDERS.values():  # without the mark that says that they are drawn
        shutil.copytree(folder / "made" / name, folder / "minis" / name)
    return zip_folder(folder / "minis", folder / "minis.zip")


class Colab:
    "A machine of Colab's, and the Drive of its user."

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.drive = folder, monkeypatch, folder / "drive/MyDrive/unified_onehead"
        (folder / "stub/google/colab").mkdir(parents=True)
        for name, text in STUB.items():
            (folder / "stub/google/colab" / name).write_text(text)
        self.set(UNIFIED_ONEHEAD_COLAB="1", UNIFIED_ONEHEAD_SMOKE="1", STUB_MOUNT=str(folder / "drive"),
                 PYTHONPATH=f"{folder / 'stub'}:{ROOT}", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")

    def set(self, **variables):
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value) if value else self.monkeypatch.delenv(name)

    def run_all(self, machine, **fields):
        "Run all cells in a folder of that name; what was printed, and the error that ended it."
        notebook = nbformat.read(ROOT / "colab.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
            for name, value in fields.items():  # what a person types into the form
                cell.source = re.sub(rf"^{name} = .*?(?=  #@param)", f"{name} = {value!r}", cell.source, flags=re.MULTILINE)
        (self.folder / machine).mkdir(exist_ok=True)
        client, error = NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True,
                                       resources={"metadata": {"path": str(self.folder / machine)}}), None
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as caught:
            error = caught
        shown = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        text = "".join(o.text for o in shown if o.output_type == "stream" and o.name == "stdout")
        raised = "\n".join(line for o in shown if o.output_type == "error" for line in o.traceback)
        return text, error, raised


@pytest.fixture
def colab(tmp_path, monkeypatch, kernel_env):
    for name, value in kernel_env.items():
        monkeypatch.setenv(name, value)
    return Colab(tmp_path, monkeypatch)


def test_a_session_that_is_cut_goes_on_on_a_new_machine(colab, archive):
    (colab.drive / "data").mkdir(parents=True)
    shutil.copy(archive, colab.drive / "data/minis.zip")  # the person's own, since the official hosts do not answer
    colab.set(STUB_CUT="1")
    text, error, _ = colab.run_all("first")
    run = colab.drive / "runs/smoke-progressive_kd-seed0"
    assert isinstance(error, DeadKernelError), text
    assert (run / "stage1.pt").exists() and not (run / "stage2.pt").exists()
    first = text.splitlines()[0]
    assert first.startswith("assignment: preset smoke (64 px) on cpu") and "Google Drive, which is asked for next" in first
    assert re.search(r"training takes about \d+ min here, an estimate", first)
    assert "archives found in" in text and f"runs go to {colab.drive / 'runs'}" in text

    mark = json.loads((run / "owner.json").read_text())
    (run / "owner.json").write_text(json.dumps({**mark, "host": "a-machine-that-is-gone", "time": time.time() + 100}))
    colab.set(STUB_CUT="")
    text, error, _ = colab.run_all("second")
    assert error is None
    assert text.count("another machine (a-machine-that-is-gone) wrote there a moment ago") == 1
    assert re.search(r"goes on by itself in [23]\d\d s", text) and "resumed after seg" in text and "after stage 3" in text
    assert "WARNING" not in text
    assert text.index("after stage 3") < text.index("measuring what the report states") < text.index("drawing the figures")
    assert not (colab.folder / "second/runs").exists(), "everything of the run is on Drive"
    with zipfile.ZipFile(run / "handin.zip") as packed:
        assert packed.testzip() is None
        names = set(packed.namelist())
        assert {"README.md", "report.md", "figures/matrix.png", "model.pt", "eval.py", "dialogs/README.md"} <= names
        assert json.loads(packed.read("colab.ipynb"))["metadata"]["asked"] == "get_ipynb", "the open one, with its outputs"


def test_drive_refused_is_one_warning(colab, archive):
    colab.set(STUB_REFUSE="1", STUB_CUT="1")  # cut: how a run ends is seen above
    text, error, _ = colab.run_all("local", URL=str(archive))
    assert isinstance(error, DeadKernelError)
    refused = [line for line in text.splitlines() if "Drive" in line and "WARNING" in line]
    assert len(refused) == 1 and "credential propagation was unsuccessful" in refused[0] and "ends with the session" in refused[0]
    assert "skipped drive: no archives" in text and f"getting {archive}" in text and "runs go to runs" in text
    assert (colab.folder / "local/runs/smoke-progressive_kd-seed0/stage1.pt").exists() and not (colab.folder / "drive").exists()


def test_sources_that_are_down_end_in_how_to_go_on(colab):
    text, error, raised = colab.run_all("down")
    assert isinstance(error, CellExecutionError) and "Traceback" not in raised
    where = f"put your own archive, minis.zip, into {colab.drive / 'data'} (or into data/minis) and run all cells again. "
    assert where + "Or write the link of an archive, or the id of a file on Drive, into the field URL." in raised
    assert "skipped zip: the field URL is empty" in text and "skipped official: " in text
    assert not re.search(r"(?<![-\w])--[a-z]", text + raised), "no option of a command line"
    assert "after stage" not in text and not (colab.folder / "down/data/minis/mini_coco_det").exists(), "no shapes in its place"


def test_the_minutes_that_the_notebook_names_are_recorded():
    runs = sorted((ROOT / "benchmarks/results/quality").glob("progressive_kd-efficientnet-b0-distilled-256px-seed?.json"))
    cells = [json.loads(path.read_text()) for path in runs]
    minutes = sorted(cell["train_seconds"]["total"] / 60 for cell in cells)
    assert {(cell["device"], cell["config"]["run"]["preset"]) for cell in cells} == {("cpu, 1 threads", "cpu")}
    said = re.search(r"(\w+) recorded trainings of `cpu` with EfficientNet-B0 took (\d+) to (\d+) minutes on one CPU thread",
                     (ROOT / "colab.ipynb").read_text(encoding="utf-8"))
    assert said.groups() == ("Three", f"{minutes[0]:.0f}", f"{minutes[-1]:.0f}") and len(minutes) == 3
