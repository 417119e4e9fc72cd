"""The check of the processed pages must be able to fail: nbdev runs on a small repository, once sound and once for each fault."""
import json
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import website  # noqa: E402

SIDEBAR = "website:\n  sidebar:\n    contents:\n      - section: Start\n        contents: [index.ipynb, core/01_one.ipynb]\n"
INDEX = [("markdown", "# Home\n\n> The promise."), ("markdown", "See [one](core/01_one.ipynb#half-of-it).")]
ONE = [("code", "#| default_exp core.one"), ("markdown", "# One\n\n> Half of a number."),
       ("markdown", "## Half of it\n\nPlain words."), ("code", "#| hide\nimport math"),
       ("code", "#| export\ndef half(x): return x / 2"), ("code", "print(half(3))", "1.5\n")]


def page(cells):
    "(kind, source) or (kind, source, printed text) -> a notebook."
    made = []
    for i, (kind, source, *printed) in enumerate(cells):
        code = {"execution_count": None, "outputs": [{"output_type": "stream", "name": "stdout", "text": t} for t in printed]}
        made.append({"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": source, **(code if kind == "code" else {})})
    return json.dumps({"cells": made, "metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "3"}},
                       "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def repository(tmp_path):
    def make(index=INDEX, one=ONE, sidebar=SIDEBAR, more=()):
        for name in ("settings.ini", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        (tmp_path / "nbs/core").mkdir(parents=True)
        (tmp_path / "unified_onehead").mkdir()
        (tmp_path / "unified_onehead/__init__.py").write_text('__version__ = "0.1"\n')
        files = {"_quarto.yml": "project:\n  type: website\n", "sidebar.yml": sidebar, "index.ipynb": page(index),
                 "core/01_one.ipynb": page(one), **dict(more)}
        for name, text in files.items():
            (tmp_path / "nbs" / name).write_text(text)
        return tmp_path
    return make


def test_sound_pages_pass_and_are_counted(repository):
    found, problems = website.check(repository())
    assert problems == [] and found["pages"] == 2 and found["links"] >= 1
    assert found["words"] == len("Home The promise See one One Half of a number Half of it Plain words print half 3 1 5".split())


FAULTS = [  # what stands on the home page -> what is said
    ("[one](core/02_one.ipynb)", "index.ipynb: link to core/02_one.ipynb: no such file"),
    ("[one](core/01_one.ipynb#third)", "index.ipynb: link to core/01_one.ipynb#third: no heading #third there"),
    ("![](images/none.png)", "index.ipynb: link to images/none.png: no such file"),
    ("[r](../README.md)", "index.ipynb: link to ../README.md: leaves the site"),
    ("[r](https://github.com/unified-onehead/unified-onehead/blob/main/NONE.md)", "NONE.md: no such file in the repository"),
    ("[r](https://github.com/unified-onehead/unified-onehead/blob/main/README.md)", None),
    ("`[in code](nowhere.ipynb)`", None),
    ("See [[`half`](core/01_one.ipynb)](core/01_one.ipynb).", "index.ipynb: a link inside a link, [[`half`]("),
]


def test_every_fault_is_named(repository):
    lost = [ONE[0], ("markdown", ONE[1][1] + "\n\nThese words vanish."), *ONE[2:]]
    other = page([("markdown", "# Another page\n\n> With the address of the first.")])
    root = repository(index=[INDEX[0], *(("markdown", text) for text, _ in FAULTS)], one=lost,
                      sidebar=SIDEBAR.replace("01_one.ipynb", "07_one.ipynb, core/02_two.ipynb"),
                      more={"_quarto.yml": "format:\n  html:\n    css: none.css\n", "core/02_two.ipynb": other,
                            "core/03_two.ipynb": other}.items())
    (root / "README.md").write_text("Here.")
    _, problems = website.check(root)
    wanted = [said for _, said in FAULTS if said] + [
        "core/01_one.ipynb: 3 words are not on the processed page", "sidebar.yml: core/07_one.ipynb is no page",
        "sidebar.yml: core/01_one.ipynb stands there 0 times", "_quarto.yml: no file none.css",
        "core/02_two.ipynb, core/03_two.ipynb: one address for 2 pages"]
    assert [text for text in wanted if not any(text in problem for problem in problems)] == []
    assert len(problems) == len(wanted) + 1, "03_two is not in the sidebar either"


def test_a_cell_that_fails_when_the_docs_are_made_stops_the_check(repository):
    mixed = [*ONE[:3], ("code", "toy = 1"), ("code", "import math\nprint(toy)"), *ONE[4:]]
    with pytest.raises(SystemExit, match="toy"):
        website.check(repository(one=mixed))


def test_a_figure_needs_a_description():
    drawn = {"cell_type": "code", "source": "plot()", "outputs": [{"output_type": "display_data", "data": {"image/png": "x"}}]}
    assert website.undescribed("a", [drawn]) == ['a, cell 0: a figure without #| fig-alt: "what it shows"']
    told, hidden = ({**drawn, "source": line + "\nplot()"} for line in ('#| fig-alt: "A line"', "#| hide"))
    assert website.undescribed("a", [told, hidden]) == []


def test_links_of_drawn_pages(tmp_path):
    (tmp_path / "a.html").write_text('<h2 id="x">X</h2><a href="b.html#y">b</a><a href="#x">x</a><a href="https://e.org">e</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#x">x</a><img src="none.png"><a href="a.html#z">z</a>')
    found, problems = website.check_html(tmp_path)
    assert found == {"pages": 2, "links": 5}
    assert problems == ["a.html: b.html#y: no such anchor", "b.html: none.png: no such file", "b.html: a.html#z: no such anchor"]


def test_nothing_visited_is_a_failure(tmp_path, capsys):
    assert website.main(["--html", str(tmp_path)]) == 1
    assert "visited no pages, so it proves nothing" in capsys.readouterr().out
