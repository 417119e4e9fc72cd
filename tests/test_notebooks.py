"""Every page under nbs/ is a test, and so is the driver notebook. Nothing is written back."""
import configparser
import json
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient.exceptions import CellExecutionError

sys.path.insert(0, str(ROOT / "tools"))
import check  # noqa: E402
import outputs  # noqa: E402
from outputs import execute  # noqa: E402

PAGES = [path.relative_to(ROOT / "nbs").as_posix() for path in check.notebooks(ROOT)]


def code_of(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


@pytest.fixture(autouse=True)
def environment(monkeypatch, kernel_env):
    for name, value in kernel_env.items():
        monkeypatch.setenv(name, value)


def test_pages_were_collected():
    "A suite that found no page must not be green."
    assert PAGES, f"no notebook under {ROOT / 'nbs'}"


@pytest.mark.parametrize("page", PAGES)
def test_page(page):
    path, files = ROOT / "nbs" / page, set((ROOT / "nbs").rglob("*"))
    source = path.read_bytes()
    notebook = execute(path, path.parent)  # as nbdev does: articles reach benchmarks/ from where they lie
    assert all(c.execution_count for c in code_of(notebook))
    assert path.read_bytes() == source
    stale = outputs.stale(json.loads(source)["cells"], notebook.cells)
    assert not stale, "\n".join(stale)
    left = set((ROOT / "nbs").rglob("*")) - files
    assert not left, f"the page left files in nbs/, where it should use a temporary folder: {left}"


def test_driver_notebook_in_smoke_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIFIED_ONEHEAD_SMOKE", "1")
    notebook = execute(ROOT / "colab.ipynb", tmp_path)
    assert all(c.execution_count for c in code_of(notebook))
    assert not [c.source for c in code_of(notebook) if re.search(r"^\s*(def|class) ", c.source, re.MULTILINE)]


def test_kernel_is_this_interpreter(tmp_path):
    path = tmp_path / "who.ipynb"
    cell = nbformat.v4.new_code_cell("import sys, matplotlib\nprint(sys.executable, matplotlib.get_backend())")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    text = execute(path, tmp_path).cells[0].outputs[0].text
    assert sys.executable in text and "inline" in text


def test_a_failing_cell_fails(tmp_path):
    "The negative control of this file."
    path = tmp_path / "bad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")]), path)
    with pytest.raises(CellExecutionError, match="1 \\+ 1 == 3"):
        execute(path, tmp_path)


def test_the_flags_of_settings_are_those_that_are_left_out():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    flags = settings["DEFAULT"]["tst_flags"].split()
    assert flags and all(outputs.NOT_RUN.search(f"#| {flag}\nx = 1") for flag in (*flags, "eval: false"))


def cell(source, text=None, number=0):
    shown = [] if text is None else [{"output_type": "stream", "name": "stdout", "text": text}]
    return {"cell_type": "code", "id": f"c{number}", "metadata": {}, "source": source, "outputs": shown}


@pytest.mark.parametrize("source, stored, now, problem", [
    ("print(x)", "AP 0.104", "AP 0.104", None),
    ("print(x)", "AP 0.1040", "AP 0.1041", None),  # a last digit
    ("print(x)", "AP 0.104", "AP 0.110", "not what the code shows"),
    ("print(x)", "AP 0.104", "AR 0.104", "not what the code shows"),
    ("print(x)", None, "AP 0.104", "not what the code shows"),
    ("print(x)", "AP 0.104", None, "not what the code shows"),
    ("#| varies\nprint(x)", "3.2 s", "4.1 s", None),
    ("#| varies\nprint(x)", None, "4.1 s", "shows nothing"),
    ("#| hide\nprint(x)", None, "AP 0.104", None),
])
def test_stored_outputs_are_held_against_the_code(source, stored, now, problem):
    found = outputs.stale([cell(source, stored)], [cell(source, now)])
    assert found == [] if problem is None else len(found) == 1 and problem in found[0]
    assert outputs.stale([cell(source, stored)], []) == [], "not run, for example a slow cell"


def test_outputs_are_stored_where_a_reader_sees_them(tmp_path):
    path = tmp_path / "page.ipynb"
    sources = ["import warnings", "#| hide\nprint('hidden')", "print('seen')\nwarnings.warn('of this machine')", "#| slow\n1 / 0"]
    path.write_text(json.dumps({"cells": [{**cell(s, "old", i), "execution_count": None} for i, s in enumerate(sources)],
                                "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert outputs.store(path) == 2
    stored = ["".join(o["text"] if isinstance(o["text"], str) else "".join(o["text"]) for o in c["outputs"])
              for c in json.loads(path.read_text())["cells"]]
    assert stored == ["", "", "seen\n", "old"]
