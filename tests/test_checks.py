"""The checks must be able to fail: each is shown something wrong, and nothing at all."""
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check  # noqa: E402
import readme  # noqa: E402

GOOD = [
    ("code", "#| default_exp one"), ("markdown", "# One\n\n> The promise."), ("code", "#| export\nimport math"),
    ("markdown", "## Half"), ("code", "#| export\ndef half(x): return x / 2"), ("code", "assert half(3) == 1.5"),
    ("markdown", "## What can go wrong\n\nNothing."),
]


def notebook(cells):
    outputs = {"execution_count": None, "outputs": []}
    return {
        "cells": [{"cell_type": kind, "id": f"cell{i}", "metadata": {}, "source": text.splitlines(keepends=True),
                   **(outputs if kind == "code" else {})} for i, (kind, text) in enumerate(cells)],
        "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
    }


@pytest.fixture
def repository(tmp_path):
    "Writes a repository of one page and its module."
    def write(cells, module="import math\n"):
        for folder in ("nbs", check.PACKAGE):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("settings.ini", "pyproject.toml"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        (tmp_path / "nbs/01_one.ipynb").write_text(json.dumps(notebook(cells), sort_keys=True, indent=1) + "\n")
        (tmp_path / check.PACKAGE / "one.py").write_text(module)
        return tmp_path
    return write


def with_cell(number, text):
    return [(kind, text if i == number else old) for i, (kind, old) in enumerate(GOOD)]


@pytest.mark.parametrize("name", check.CHECKS)
def test_nothing_visited_is_a_failure(name, tmp_path, capsys):
    (tmp_path / "nbs").mkdir()
    for file in ("settings.ini", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    assert check.main([name], tmp_path) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: 0 files visited") and "visited no file, so it proves nothing" in said


def test_a_good_page_passes(repository):
    root = repository(GOOD)
    assert check.check_pages(root) == (1, [])
    assert check.check_imports(root) == (1, [])
    assert check.check_clean(root) == (1, [])


@pytest.mark.parametrize("number, text, problem", [
    (1, "# One\n\n> A promise\n> of two lines.", "a promise of one line"),
    (4, "#| export\ndef half(x):\n" + "    x = x\n" * 40 + "    return x / 2", "42 lines"),
    (4, "#| export\nimport os\ndef half(x): return x / 2", "imports stand alone"),
    (5, "half(3)", "0 cells with assertions"),
    (5, "half(3)  # assert that it is 1.5", "0 cells with assertions"),
    (5, "%time half(3)\n'assert'", "0 cells with assertions"),
    (6, "## The end", "What can go wrong"),
])
def test_a_bad_page_is_named(repository, number, text, problem):
    visited, problems = check.check_pages(repository(with_cell(number, text)))
    assert visited == 1 and len(problems) == 1 and problem in problems[0] and "01_one.ipynb" in problems[0]


@pytest.mark.parametrize("module, problem", [
    ("from math import *\n", "star import"),
    ("def f():\n    from fastcore.all import L\n", "imports fastcore"),
    ("from .one import half\n", "imports one (1), not below 1"),
    ("import unified_onehead.one\n", "imports one (1), not below 1"),
    ("from . import one\n", "imports one (1), not below 1"),
    ("from unified_onehead import two\n", "imports two (2), not below 1"),
    ("from unified_onehead.two import twice\n", "imports two (2), not below 1"),
    ("import unified_onehead\nunified_onehead.two.twice(3)\n", "one.py:2: imports two (2), not below 1"),
    ("import unified_onehead as whole\ndef f(): return whole.two.twice\n", "one.py:2: imports two (2), not below 1"),
    ("from .absent import y\n", "imports absent, which no notebook exports"),
    ("from unified_onehead import absent\n", "imports absent, which no notebook exports"),
])
def test_a_bad_import_is_named(repository, module, problem):
    root = repository(GOOD, module)
    (root / "nbs/02_two.ipynb").write_text(json.dumps(notebook([("code", "#| default_exp two")])))
    visited, problems = check.check_imports(root)
    assert visited == 1 and len(problems) == 1 and problem in problems[0] and "one.py:" in problems[0]


@pytest.mark.parametrize("module", [
    "from . import __version__\n", "import unified_onehead\nunified_onehead.__file__\n", "from .zero import nothing\n",
    "from unified_onehead import zero\nzero.two\n", "import unified_onehead.zero\nunified_onehead.zero.two\n",
])
def test_a_good_import_passes(repository, module):
    root = repository(GOOD, module)
    (root / "nbs/00_zero.ipynb").write_text(json.dumps(notebook([("code", "#| default_exp zero")])))
    assert check.check_imports(root) == (1, [])


@pytest.mark.parametrize("cell, expected", [
    ("assert x == 1", True), ("assert_close(x, 1)", True), ("np.testing.assert_allclose(x, 1)", True),
    ("expect_error(half, 'three')", True), ("if x:\n    assert y", True), ("%matplotlib inline\nassert x", True),
    ("files = !ls\nassert files", True), ("with f():\n    %timeit g()\nassert x", True),
    ("text = ('%d'\n        % 3)\nassert x", True),
    ("# assert x == 1", False), ("print('assert x')", False), ("assert_close = 3", False), ("say('expect_error(')", False),
    ("%matplotlib inline", False), ("%%bash\necho 'assert this'", False), ("half?  # assert", False), ("", False),
])
def test_only_an_assertion_is_a_proof(cell, expected):
    assert check.proves(cell) is expected


def test_sync_counts_what_notebooks_export(repository):
    "nbdev writes __init__ and _modidx whether there is a page or not, and README.md is no module."
    root = repository(GOOD)
    assert check.check_sync(root)[0] == 1
    (root / "nbs/01_one.ipynb").unlink()
    (root / "nbs/index.ipynb").write_text(json.dumps(notebook([("markdown", "# Title")])))
    assert check.check_sync(root)[0] == 0


def test_an_edited_module_is_out_of_sync(repository):
    root = repository(GOOD, "x = 1\n")
    (root / check.PACKAGE / "orphan.py").write_text("")
    problems = "\n".join(check.check_sync(root)[1])
    assert "one.py: not up to date" in problems and "orphan.py: no notebook exports it" in problems


def test_an_unclean_notebook_is_found(repository):
    root = repository(GOOD)
    path = root / "nbs/01_one.ipynb"
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 3', 1))
    assert "01_one.ipynb: not up to date" in check.check_clean(root)[1][0]


def test_a_stored_warning_is_found(repository):
    root = repository(GOOD)
    path = root / "nbs/01_one.ipynb"
    page = json.loads(path.read_text())
    page["cells"][5]["outputs"] = [{"name": "stderr", "output_type": "stream", "text": ["/home/me/x.py:1: Warning\n"]}]
    path.write_text(json.dumps(page, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    assert check.check_clean(root) == (1, ["01_one.ipynb, cell 5: stores a warning; delete that output"])


def test_readme_has_prose_code_outputs_and_links():
    page = notebook([("markdown", "# T\n[a](01_one.ipynb) [c](../colab.ipynb) [w](https://x.y)"), ("code", "1 + 1"),
                     ("code", "#| hide\nsecret = 1"), ("code", "#| echo: false\nplot()")])
    page["cells"][1]["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": ["2"]}}]
    figure = {"image/png": "aGk=", "text/plain": ["<Figure>"]}
    page["cells"][3]["outputs"] = [{"output_type": "display_data", "data": figure}]
    text, images = readme.render(page)
    assert "[a](nbs/01_one.ipynb) [c](colab.ipynb) [w](https://x.y)" in text
    assert "```python\n1 + 1\n```\n\n    2\n" in text and "secret" not in text and "plot" not in text
    assert images == {"README_files/figure-3-0.png": b"hi"} and "![](README_files/figure-3-0.png)" in text
