"""What the tests share: the repository's root and a Jupyter environment of this interpreter alone."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INLINE = "module://matplotlib_inline.backend_inline"


@pytest.fixture(scope="session")
def kernel_env(tmp_path_factory):
    "Variables under which a kernel named `python3` is this very interpreter, whatever else is registered."
    from ipykernel.kernelspec import write_kernel_spec

    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "kernels").mkdir()
    write_kernel_spec(str(folder / "kernels" / "python3"))
    threads = os.environ.get("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    return {
        "JUPYTER_PATH": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLBACKEND": INLINE,
        "OMP_NUM_THREADS": threads,
    }
