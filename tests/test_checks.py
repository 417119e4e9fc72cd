"""The checks must be able to fail: each is shown something wrong, and nothing at all."""
import ast
import importlib
import json
import pydoc
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check  # noqa: E402
import export  # noqa: E402
import readme  # noqa: E402

HALF = """#| export
def half(
    x: float,  # any number
) -> float:  # x / 2
    "One of two equal parts."
    return x / 2"""
GOOD = [
    ("code", "#| default_exp core.one"), ("markdown", "# One\n\n> The promise."), ("code", "#| export\nimport math"),
    ("markdown", "## Half"), ("code", HALF), ("code", "#| code-fold: true\nassert half(3) == 1.5"),
    ("markdown", "## What can go wrong\n\nNothing."),
]


def notebook(cells):
    outputs = {"execution_count": None, "outputs": []}
    return {
        "cells": [{"cell_type": kind, "id": f"cell{i}", "metadata": {}, "source": text.splitlines(keepends=True),
                   **(outputs if kind == "code" else {})} for i, (kind, text) in enumerate(cells)],
        "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
    }


def write_page(root, name, cells):
    "`name` from nbs/ on, without the ending."
    path = root / "nbs" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook(cells), sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    return path


def write_module(root, name, text):
    path = root / check.PACKAGE / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def code_page(module, *sources):
    "The shortest page that exports some code."
    return [("code", f"#| default_exp {module}"), ("markdown", "# T\n\n> P."), *(("code", f"#| export\n{s}") for s in sources)]


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "nbs").mkdir()
    for name in ("settings.ini", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


@pytest.fixture
def repository(empty):
    "Writes a repository of one page and its module."
    def write(cells, module="import math\n"):
        write_page(empty, "core/01_one", cells)
        write_module(empty, "core.one", module)
        return empty
    return write


def with_cell(number, text):
    return [(kind, text if i == number else old) for i, (kind, old) in enumerate(GOOD)]


@pytest.mark.parametrize("name", check.CHECKS)
def test_nothing_visited_is_a_failure(name, empty, capsys):
    assert check.main([name], empty) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: 0 ") and "so it proves nothing" in said and "visited no " in said


def test_a_check_of_imports_that_follows_no_arrow_is_a_failure(repository, capsys):
    assert check.main(["imports"], repository(GOOD)) == 1
    said = capsys.readouterr().out
    assert said.startswith("imports: 1 packages, 1 modules, 0 arrows visited, 0 backwards, 1 problems")
    assert "visited no arrows, so it proves nothing" in said


def test_a_good_page_passes(repository):
    root = repository(GOOD)
    assert check.check_pages(root) == ({"files": 1}, [], "")
    assert check.check_imports(root) == ({"packages": 1, "modules": 1, "arrows": 0}, [], "0 backwards")
    assert check.check_clean(root) == ({"files": 1}, [], "")
    export.export(root)
    assert check.check_names(root) == ({"files": 1}, [], "1 public names")
    assert check.check_docs(root) == ({"files": 1, "functions and classes": 1}, [], "")


@pytest.mark.parametrize("number, text, problem", [
    (1, "# One\n\n> A promise\n> of two lines.", "a promise of one line alone"),
    (1, "# One\n\n> The promise.\n\nWhat nbdev would drop.", "what follows belongs into the next cell"),
    (5, "#| code-fold: true\nimport math\nassert half(3) == 1.5", "cell 5: imports and code in one cell"),
    (5, "#| hide\ndef f():\n    import math\nassert half(3) == 1.5", "cell 5: imports and code in one cell"),
    (5, "assert half(3) == 1.5", "cell 5: asserts and shows nothing; fold it"),
    (4, "#| export\ndef half(x):\n" + "    x = x\n" * 39 + "    return x / 2", "half has 41 lines; 40 at most"),
    (4, "#| export\n@cache\ndef half(x):\n" + "    x = x\n" * 38 + "    return x / 2", "half has 41 lines; 40 at most"),
    (4, "#| export\nclass A:\n    def f(x):\n" + "        x = x\n" * 40, "f has 41 lines; 40 at most"),
    (4, "#| export\nimport os\ndef half(x): return x / 2", "imports stand alone"),
    (5, "half(3)", "0 cells with assertions"),
    (5, "half(3)  # assert that it is 1.5", "0 cells with assertions"),
    (5, "%time half(3)\n'assert'", "0 cells with assertions"),
    (6, "## What can go wrong\n\n```sh pip install . ```\n\n```\na/\n```", "cell 6: code on the line of its fence"),
    (6, "## The end", "What can go wrong"),
])
def test_a_bad_page_is_named(repository, number, text, problem):
    visited, problems, _ = check.check_pages(repository(with_cell(number, text)))
    assert visited == {"files": 1} and len(problems) == 1 and problem in problems[0] and "core/01_one.ipynb" in problems[0]


@pytest.mark.parametrize("source", [
    "def half(x):\n" + "    x = x\n" * 38 + "    return x / 2",  # 40 lines
    "class A:\n" + "    def f(x):\n        return x\n\n" * 20,  # 61 lines, but each method has 2
    "TABLE = [\n" + "    1,\n" * 50 + "]",
])
def test_only_the_length_of_functions_is_capped(source):
    assert check.export_problems("#| export\n" + source) == []


@pytest.mark.parametrize("texts, ideas", [
    ([], 0),
    (["#| export\nimport math"], 0),
    (["#| export\nx = 1"], 1),
    (["#| exporti\ndef _f(): 1", "#| export\ndef g(): 2", "#| export\ndef h(): 3"], 1),  # nothing between them
    (["#| export\nx = 1", "x", "#| export\ny = 1"], 2),
    (["#| export\nimport math", "#| export\nx = 1"], 1),
    (["#| export\nx = 1", "#| export\nimport math", "#| export\ny = 1"], 1),
])
def test_neighbouring_export_cells_are_one_idea(texts, ideas):
    assert check.count_ideas([("code", text) for text in texts]) == ideas


def test_more_ideas_than_prose_is_a_problem(repository):
    cells = [*GOOD[:5], ("code", "1"), ("code", "#| export\ny = 1"), ("code", "1"), ("code", "#| export\nz = 1"), GOOD[5],
             ("code", "#| export\na = 1"), *GOOD[5:]]
    assert check.check_pages(repository(cells)).problems == ["nbs/core/01_one.ipynb: 3 prose cells for 4 ideas"]


def test_two_notebooks_of_one_folder_make_no_single_page(repository):
    root = repository(GOOD)
    write_page(root, "data/02_one", [("markdown", "# Another folder\n\n> Fine.")])
    assert check.check_pages(root).problems == []
    write_page(root, "core/02_one", [("markdown", "# The same folder\n\n> Not fine.")])
    assert check.check_pages(root).problems == ["nbs/core/one.ipynb: 2 notebooks of this folder make one page; rename"]


def with_neighbours(root):
    "Pages below (`zero`) and above (`two`) in the same package, and one in the package above."
    for module, name in (("core.zero", "core/00_zero"), ("core.two", "core/02_two"), ("data.table", "data/00_table")):
        write_page(root, name, [("code", f"#| default_exp {module}")])
    return root


@pytest.mark.parametrize("module, problem", [
    ("from math import *\n", "star import"),
    ("def f():\n    from fastcore.all import L\n", "imports fastcore"),
    ("from .one import half\n", "imports core.one (1), backwards: not below 1"),
    ("import unified_onehead.core.one\n", "imports core.one (1), backwards: not below 1"),
    ("from . import one\n", "imports core.one (1), backwards: not below 1"),
    ("from unified_onehead.core import two\n", "imports core.two (2), backwards: not below 1"),
    ("from ..core.two import twice, thrice\n", "imports core.two (2), backwards: not below 1"),
    ("import unified_onehead\nunified_onehead.core.two.twice(3)\n", "one.py:2: imports core.two (2), backwards"),
    ("import unified_onehead as whole\ndef f(): return whole.core.two.twice\n", "one.py:2: imports core.two (2), backwards"),
    ("from ..data.table import y\n", "imports data.table, backwards: core may not import data"),
    ("from .. import data\n", "imports data, backwards: core may not import data"),
    ("def f():\n    from unified_onehead.data import table\n", "one.py:2: imports data.table, backwards: core may not"),
    ("from .absent import y\n", "imports core.absent.y, which no notebook exports"),
    ("from .. import OneHead\n", "imports OneHead, which no notebook exports"),
    ("from unified_onehead import absent\n", "imports absent, which no notebook exports"),
])
def test_a_bad_import_is_named(repository, module, problem):
    visited, problems, note = check.check_imports(with_neighbours(repository(GOOD, module)))
    assert visited["modules"] == 1 and len(problems) == 1 and problem in problems[0] and "core/one.py:" in problems[0]
    assert note == f"{int('backwards' in problem)} backwards"


@pytest.mark.parametrize("module, arrows", [
    ("from .. import __version__\n", 0), ("import unified_onehead\nunified_onehead.__file__\n", 0),
    ("from .zero import nothing\n", 1), ("from ..core.zero import nothing, much\n", 1), ("from . import zero\nzero.two\n", 1),
    ("import unified_onehead.core.zero\nunified_onehead.core.zero.two\n", 1),
])
def test_a_good_import_passes(repository, module, arrows):
    root = with_neighbours(repository(GOOD, module))
    assert check.check_imports(root) == ({"packages": 1, "modules": 1, "arrows": arrows}, [], "0 backwards")


def test_packages_import_what_the_table_allows(repository):
    root = with_neighbours(repository(GOOD, ""))
    write_module(root, "data.table", "from ..core.two import twice\nimport unified_onehead.core as c\nc.one.half\n")
    write_module(root, "core.__init__", "")
    visited = {"packages": 2, "modules": 2, "arrows": 3}  # two modules, and their package by its own name
    assert check.check_imports(root) == (visited, [], "0 backwards")
    write_page(root, "other/00_x", [("code", "#| default_exp other.x")])
    write_module(root, "other.x", "from ..core.one import half\n")
    assert check.check_imports(root).problems == [
        "unified_onehead/other/x.py:1: other is in no row of MAY_IMPORT (tools/check.py)"]


def test_the_table_itself_has_no_circle():
    assert check.circle({(a, b) for a, row in check.MAY_IMPORT.items() for b in row}) == []


@pytest.mark.parametrize("arrows, expected", [
    (set(), []), ({("a", "b"), ("a", "c"), ("b", "c")}, []), ({("a", "a")}, ["a", "a"]),
    ({("a", "b"), ("b", "c"), ("c", "b")}, ["b", "c", "b"]),
])
def test_circles_are_found(arrows, expected):
    assert check.circle(arrows) == expected


def test_a_circle_is_refused(repository, monkeypatch):
    monkeypatch.setitem(check.MAY_IMPORT, "core", {"data"})
    root = with_neighbours(repository(GOOD, "def f():\n    from ..data.table import y\n"))
    write_module(root, "data.table", "from ..core.one import half\n")
    assert check.check_imports(root).problems == ["a circle: core.one -> data.table -> core.one"]


@pytest.mark.parametrize("door, problem", [
    ("def __getattr__(name):\n    from .core import one\n    return one\n", None),
    ("from .core.one import half\n", "__init__.py:1: imports core.one at once; here only functions import the package"),
    ("class A:\n    from .core import one\n", "__init__.py:2: imports core.one at once"),
])
def test_the_door_imports_only_when_asked(repository, door, problem):
    root = repository(GOOD)
    write_page(root, "door", [("code", "#| default_exp __init__")])
    write_module(root, "__init__", door)
    visited, problems, _ = check.check_imports(root)
    assert visited["modules"] == 2 and len(problems) == bool(problem) and (not problem or problem in problems[0])


@pytest.mark.parametrize("name, module, problem", [
    ("data/03_x", "core.x", "nbs/data/03_x.ipynb: exports core.x; its folder would be nbs/core"),
    ("core/x", "core.x", "nbs/core/x.ipynb: no number, so it has no place in the order of imports"),
    ("core/03_x", "core.one", "nbs/core/01_one.ipynb: exports core.one, as another page does"),
])
def test_a_misplaced_page_is_named(repository, name, module, problem):
    root = repository(GOOD)
    write_page(root, name, [("code", f"#| default_exp {module}")])
    assert check.check_imports(root).problems[0] == problem


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
    assert check.check_sync(root).visited == {"files": 1}
    (root / "nbs/core/01_one.ipynb").unlink()
    write_page(root, "index", [("markdown", "# Title")])
    assert check.check_sync(root).visited == {"files": 0}


def test_sync_is_green_after_the_export_and_not_after_nbdevs_alone(repository):
    root = repository(GOOD)
    write_page(root, "index", [("markdown", "# Title")])
    export.export(root)
    for name, content in readme.files(root).items():
        (root / name).write_bytes(content)
    assert check.check_sync(root) == ({"files": 1}, [], "")
    with_sections = root / check.PACKAGE / "core/one.py"
    with_sections.write_text(with_sections.read_text().replace("    Parameters\n", ""))
    assert check.check_sync(root).problems == ["unified_onehead/core/one.py: not up to date; run python tools/export.py"]


def test_an_edited_module_is_out_of_sync(repository):
    root = repository(GOOD, "x = 1\n")
    write_module(root, "core.orphan", "")
    write_module(root, "gone.__init__", "")
    problems = "\n".join(check.check_sync(root).problems)
    assert "core/one.py: not up to date; run python tools/export.py" in problems and "core/__init__.py: no " not in problems
    assert "orphan.py: no notebook exports it" in problems and "gone/__init__.py: no notebook exports it" in problems


def test_an_unclean_notebook_is_found(repository):
    root = repository(GOOD)
    path = root / "nbs/core/01_one.ipynb"
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 3', 1))
    assert "01_one.ipynb: not up to date" in check.check_clean(root).problems[0]


def test_a_stored_warning_is_found(repository):
    root = repository(GOOD)
    path = root / "nbs/core/01_one.ipynb"
    page = json.loads(path.read_text())
    page["cells"][5]["outputs"] = [{"name": "stderr", "output_type": "stream", "text": ["/home/me/x.py:1: Warning\n"]}]
    path.write_text(json.dumps(page, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    assert check.check_clean(root) == ({"files": 1}, ["01_one.ipynb, cell 5: stores a warning; delete that output"], "")


def test_public_names_are_counted(empty, monkeypatch):
    write_page(empty, "core/00_a", code_page("core.a", "x = y = 1\n_z = 2", "def f(): pass"))
    write_page(empty, "door", code_page("__init__", "_all_ = ['f']"))
    export.export(empty)
    assert check.check_names(empty) == ({"files": 1}, [], "3 public names")  # the door repeats one
    monkeypatch.setattr(check, "MAX_NAMES", 2)
    assert check.check_names(empty).problems == ["3 public names; 2 at most"]


def test_a_long_module_and_a_test_helper_are_named(empty):
    long = "x = [\n" + "    1,\n" * 490 + "]"
    write_page(empty, "core/00_a", code_page("core.a", long))  # 500 lines: 492, and 8 of nbdev's
    write_page(empty, "core/01_b", code_page("core.b", long + "\ny = 1"))
    write_page(empty, "core/02_c", code_page("core.c", "def expect_error(fn): pass"))
    export.export(empty)
    assert check.check_names(empty).problems == [
        "unified_onehead/core/b.py: 501 lines; 500 at most",
        "unified_onehead/core/c.py, expect_error: a test helper in __all__; export it with #| exporti"]


DOCUMENTED = """
@dataclass
class Box:
    "A box."
    side: int = 1  # pixels

class Net(Module):
    "A network."
    def __init__(
        self,
        width: int,  # channels
    ):
        self.width = width
    def forward(self, x): return x
    def parts(self) -> list:
        "Its layers."
    def _hidden(self, a, b): return a

def f(
    a: int,  # one
    *rest,  # the others
    key=len,  # called with each
    **more: str,  # by name
) -> "Box":
    "Add. Raises ValueError for none."
    if not rest:
        raise ValueError("none")
    try:
        return Box(a)
    except TypeError as error:
        raise error

def g() -> None:
    "Nothing to say."

def h():
    "No value, so no type."
    raise NotImplementedError
"""


@pytest.mark.parametrize("old, new, problem", [
    ("", "", None),
    ('    "A box."\n', "", "Box: no docstring"),
    ("  # pixels", "", "Box: field side has no comment"),
    ("  # channels", "", "Net: parameter width has no comment"),
    ('        "Its layers."', "        pass", "Net.parts: no docstring"),
    ("    def parts(self)", "    def parts(self, a, b)", "Net.parts: parameter a has no comment"),
    ("    def forward(self, x): return x", "    def backward(self, x): return x", "Net.backward: no docstring"),
    ("class Net(Module)", "class Net", "Net.forward: no docstring"),
    ("  # one", "", "f: parameter a has no comment"),
    ("  # the others", "", "f: parameter *rest has no comment"),
    ("  # by name", "", "f: parameter **more has no comment"),
    ('-> "Box"', "-> list[int]", "f: what it returns has neither a comment nor a plain type"),
    (') -> "Box":', "):", "f: what it returns has neither a comment nor a plain type"),
    (' Raises ValueError for none.', "", "f: raises ValueError, which the docstring does not name"),
    ('    "Nothing to say."', "    pass", "g: no docstring"),
])
def test_what_is_public_is_documented(empty, old, new, problem):
    names = "__all__ = ['Box', 'Net', 'f', 'g', 'h']\n"
    write_module(empty, "core.one", export.complete(names + DOCUMENTED.replace(old, new, 1) + "\ndef private(x): return x\n"))
    visited, problems, _ = check.check_docs(empty)
    assert visited == {"files": 1, "functions and classes": 5}
    if problem is None:
        assert problems == []
    else:
        assert problems and problems[0] == f"unified_onehead/core/one.py, {problem}"


def test_a_docstring_that_was_not_completed_is_named(repository):
    root = repository(GOOD, "__all__ = ['half']\n" + HALF.partition("\n")[2] + "\n")
    assert check.check_docs(root).problems == [
        "unified_onehead/core/one.py, half: the docstring does not show x; run python tools/export.py"]


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


def docstrings(text):
    "Name -> cleaned docstring of everything in a completed module."
    tree = ast.parse(export.complete(text))
    return {n.name: ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, (*export.Function, ast.ClassDef))}


def test_a_completed_docstring_by_hand():
    text = '''x = "kept"   # as it is
def half(
    number: "int | float",  # any number
    *rest: int,  # ignored
    by=2,
    say: str = "a b",  # printed
    **more,  # handed on
) -> "float":  # the half
    "One part. Raises ValueError for by = 0, InputError where the text is none."
    return number / by  # plain division
'''
    summary = '    "One part. Raises ValueError for by = 0, InputError where the text is none."'
    assert export.complete(text) == text.replace(summary, '''\
    """One part. Raises ValueError for by = 0, InputError where the text is none.

    Parameters
    ----------
    number : int | float
        any number
    *rest : int
        ignored
    by : default 2
    say : str, default "a b"
        printed
    **more
        handed on

    Returns
    -------
    float
        the half
    """''')


@pytest.mark.parametrize("text", [
    "", "x = 1\n", "def f(x): return x  # said\n", "def f(x: int) -> int:\n    'No comment.'\n    return x\n",
    "def f(\n    x,  # said\n):\n    return x\n",  # no docstring
    "def _f(\n    x,  # said\n):\n    'Private.'\n", "def f(\n    x,  # noqa: E741\n):\n    'For a tool.'\n",
    "# %% one\ndef f(x: int) -> None:\n    'No comment.'\n",
    "def f(\n    x,  # said\n):\n    '''Done.\n\n    Parameters\n    ----------\n    x\n        said\n    '''\n",
])
def test_what_needs_no_section_is_left_alone(text):
    assert export.complete(text) == text


def test_completing_twice_is_completing_once():
    once = export.complete(DOCUMENTED)
    assert once != DOCUMENTED and export.complete(once) == once


@pytest.mark.parametrize("header, written", [
    ("def f(x: int) -> str:  # what", "x : int\n\nReturns\n-------\nstr\n    what"),
    ("@cache\ndef f(x: int):  # what", "x : int\n    what"),
    ("async def f(\n    x: 'dict[str, int]' = None,  # what\n):", "x : dict[str, int], default None\n    what"),
    ("def f(\n    x=g(\n        1),  # what\n):", "x : optional\n    what"),
    ("def f(\n    # above\n    # it\n    x: int,\n):", "x : int\n    above it"),
    ("def f(\n    a, b: int,  # both\n    /,\n    *,\n    c: int = 3,\n):", "a\nb : int\n    both\nc : int, default 3"),
])
def test_signatures(header, written):
    assert docstrings(f"{header}\n    'Do.'\n")["f"] == f"Do.\n\nParameters\n----------\n{written}"


def test_classes_methods_and_generators():
    found = docstrings('''
class A:
    "Plain."
    size = 3
    def __init__(self, x: int, y: int = 1):  # the last
        self.x = x
    @property
    def area(self) -> float:  # pixels
        "Of it."
    @staticmethod
    def make(
        n: int,  # how many
    ) -> "A":
        "Some."
@dataclass(frozen=True)
class B:
    "Fields."
    a: int  # first
    b: list = field(default_factory=list)  # second
    _c: int = 0  # hidden
    d: ClassVar[int] = 1  # no field
@contextlib.contextmanager
def hold() -> "Iterator[int]":  # how many
    "Hold."
    yield 3
''')
    assert found["A"] == "Plain.\n\nParameters\n----------\nx : int\ny : int, default 1\n    the last"
    assert found["area"] == "Of it.\n\nReturns\n-------\nfloat\n    pixels"
    assert found["make"] == "Some.\n\nParameters\n----------\nn : int\n    how many\n\nReturns\n-------\nA"
    assert found["B"] == "Fields.\n\nAttributes\n----------\na : int\n    first\nb : list, default list()\n    second"
    assert found["hold"] == "Hold.\n\nYields\n------\nIterator[int]\n    how many"


@pytest.mark.parametrize("literal", [
    "'One.'", '"""One."""', "'''One.\n\n    More text.'''", r'r"A \d and a \n."', r"'A \\d and \'x\'.'",
    '"ends in \'"', "'ends in \"'",
    "'''with \"\"\" inside'''", "'a' 'b'", "'ä → ü'",
])
def test_the_text_of_a_docstring_is_kept(literal):
    text = f"x = 'ü'; y = 2\ndef f(\n    x,  # a \\d, and \"\"\"\n):\n    {literal}  # why\n    return x\n"
    done = export.complete(text)
    kept = ast.get_docstring(ast.parse(text).body[-1], clean=False)
    assert ast.get_docstring(ast.parse(done).body[-1], clean=False).startswith(f"{kept}\n\n    Parameters")
    assert '    x\n        a \\d, and """' in ast.get_docstring(ast.parse(done).body[-1], clean=False)
    assert done.endswith('"""  # why\n    return x\n') and done.startswith("x = 'ü'; y = 2\n")


def test_an_installed_user_sees_the_parameters(empty, monkeypatch):
    "From notebook to `help()`; the door's docstring comes first, though nbdev writes the version above it."
    write_page(empty, "core/00_one", code_page("core.one", HALF.partition("\n")[2]))
    write_page(empty, "door", code_page("__init__", "from math import pi"))
    assert [p.relative_to(empty).as_posix() for p in export.export(empty)] == [
        f"{check.PACKAGE}/{name}.py" for name in ("__init__", "core/__init__", "core/one")]
    before = {p: p.read_bytes() for p in empty.rglob("*.py")}
    export.export(empty)
    assert before == {p: p.read_bytes() for p in empty.rglob("*.py")}
    monkeypatch.syspath_prepend(str(empty))
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == check.PACKAGE}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    try:
        door, one = importlib.import_module(check.PACKAGE), importlib.import_module(f"{check.PACKAGE}.core.one")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == check.PACKAGE]:
            del sys.modules[name]
    assert door.__doc__ == "P." and door.__version__ and door.__file__.startswith(str(empty))
    text = pydoc.render_doc(one, renderer=pydoc.plaintext)
    assert "x : float\n            any number" in text and "Returns\n        -------\n        float\n            x / 2" in text


@pytest.mark.parametrize("old, new, problem", [
    ("", "", None),
    ("| 0.054 |", "| 0.055 |", "other numbers than README.md: ['0.055', '0.054']"),
    ("pip install .", "pip install x", "other commands than README.md"),
    ("(nbs/a.ipynb)", "(nbs/b.ipynb)", "other links than README.md: ['nbs/b.ipynb', 'nbs/a.ipynb']"),
    ("## Zwei", "### Zwei", "other headings than README.md"),
    ("`model.pt`", "`net.pt`", "other names in code than README.md"),
    ("| Netz | 0.054 |", "| Netz | 0.054 | |", "other rows of tables than README.md"),
])
def test_a_translation_says_the_same(old, new, problem):
    text = ("# {0}\n\n## {1}\n\n```sh\npip install .\n```\n\n[a](nbs/a.ipynb) `model.pt`\n\n"
            "| {2} | AP |\n|---|---|\n| {2} | 0.054 |\n")
    german = text.format("Eins", "Zwei", "Netz").replace(old, new)
    found = readme.translation_problems(text.format("One", "Two", "net"), german, "x")
    assert found == [] if problem is None else len(found) == 1 and problem in found[0]
