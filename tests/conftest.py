"""What the tests share: the repository's root and a Jupyter environment of this interpreter alone."""
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
