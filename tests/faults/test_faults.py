"""Every kind of fault that kinds_*.py knows. `pytest tests/faults` prints the table; FAULTS=write keeps it for the docs, too."""
import importlib
import json
import os
import traceback
import warnings
from pathlib import Path

import pytest
from kinds import KINDS, within

HERE = Path(__file__).parent
TABLE = HERE / "table.json"  # title -> area, what must happen, inputs tried, survived; nbs/articles/faults.ipynb shows it
for path in sorted(HERE.glob("kinds_*.py")):
    importlib.import_module(path.stem)


def try_kind(title: str, folder: Path) -> tuple:  # inputs tried, those that were not survived
    tried, fell = 0, []
    for words, attempt in KINDS[title].inputs(folder):
        tried += 1
        try:
            with within(600):  # a hang, not a slow machine
                attempt()
        except BaseException as error:  # also SystemExit: whatever it is, the input was not survived
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            fell.append(f"{words}: {type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})")
    return tried, fell


@pytest.mark.parametrize("title", KINDS)
def test_kind(title, tmp_path, record_property):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and numpy warn of what is tried here on purpose
        tried, fell = try_kind(title, tmp_path)
    row = {"area": KINDS[title].area, "must": KINDS[title].must, "tried": tried, "survived": tried - len(fell)}
    record_property("fault", {"title": title, **row})
    assert not fell, "\n".join(fell)
    known = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if os.environ.get("FAULTS") != "write":
        assert known.get(title) == row, "the kept table is another: FAULTS=write pytest tests/faults"


def test_enough():
    known = json.loads(TABLE.read_text(encoding="utf-8"))
    assert {*known} == {*KINDS}, "the kept table is another: FAULTS=write pytest tests/faults"
    assert len(known) >= 40 and sum(row["tried"] for row in known.values()) >= 500
