"""Every page under nbs/ is a test, and so is the driver notebook. Nothing is written back."""
import configparser
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PAGES = sorted(
    path.relative_to(ROOT / "nbs").as_posix()
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not re.search(r"(^|/)[_.]", path.relative_to(ROOT / "nbs").as_posix())
)
CELL_TIMEOUT = 600  # seconds; a hung cell fails instead of stopping the suite


def skip_pattern() -> re.Pattern:
    "The cells that nbdev_test leaves out too: `#| eval: false` and the flags in settings.ini."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    flags = "|".join(settings["DEFAULT"]["tst_flags"].split())
    return re.compile(rf"^#\|\s*(eval:\s*false|(?:{flags})\s*$)", re.MULTILINE)


def execute(path, cwd):
    "Run a copy of the notebook in `cwd`; a failing cell raises with its source and traceback."
    notebook, skip = nbformat.read(path, as_version=4), skip_pattern()
    notebook.cells = [c for c in notebook.cells if not (c.cell_type == "code" and skip.search(c.source))]
    resources = {"metadata": {"path": str(cwd)}}
    NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=resources).execute()
    return notebook


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
