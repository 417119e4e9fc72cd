"""What the tests share: the repository's root and a Jupyter environment of this interpreter alone."""
import json
import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once: one core each; before anything imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import outputs  # noqa: E402


@pytest.fixture(scope="session")
def kernel_env(tmp_path_factory):
    "Variables under which a kernel named `python3` is this very interpreter, whatever else is registered."
    threads = os.environ.get("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    return {**outputs.kernel_environment(str(tmp_path_factory.mktemp("jupyter"))), "OMP_NUM_THREADS": threads}


def pytest_terminal_summary(terminalreporter):
    "The table of tests/faults: fault, tried, survived."
    rows = [value for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())
            for name, value in getattr(report, "user_properties", ()) if name == "fault"]
    if rows:
        rows.sort(key=lambda row: (row["area"], row["title"]))
        width = max(len(row["title"]) for row in rows)
        terminalreporter.section("faults")
        for row in rows:
            terminalreporter.line(f"{row['title']:{width}}  {row['tried']:4} tried  {row['survived']:4} survived")
        tried, survived = (sum(row[key] for row in rows) for key in ("tried", "survived"))
        terminalreporter.line(f"{len(rows)} kinds, {tried} inputs, {survived} survived")
        if os.environ.get("FAULTS") == "write":
            path = ROOT / "tests" / "faults" / "table.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            known.update({row.pop("title"): row for row in rows})
            path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
