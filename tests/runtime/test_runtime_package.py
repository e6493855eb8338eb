"""The distribution torchswat-runtime: its list of modules, and the wheel where there is no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import torchswat

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runtime-package"


def run(*command: str | Path, **options) -> str:
    """Run a command; what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_modules_that_are_imported_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import torchswat.runtime.arrays; "
        "print(*(m for m in sys.modules if m.startswith('torchswat.')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(torchswat.__file__).parents[1])}
    imported = {name.replace(".", "/") for name in run(sys.executable, "-c", code, env=environment).split()}
    imported = {name.removeprefix("torchswat/") for name in imported}
    imported = {name for name in imported if not name.startswith(("runtime/operations", "engine/_native"))}
    listed = re.search(r"set\(without_torch\s([^)]*)\)", (FOLDER / "CMakeLists.txt").read_text())
    assert listed
    modules = {name.removesuffix("/__init__") for name in listed[1].split()}
    assert modules == imported - {"engine"}


def test_versions_agree():
    project = (FOLDER / "pyproject.toml").read_text()
    package = (FOLDER / "torchswat_runtime" / "__init__.py").read_text()
    assert f'\nversion = "{torchswat.__version__}"\n' in project
    assert f'\n__version__ = "{torchswat.__version__}"\n' in package


ANSWER = """
import sys
import numpy as np
import torchswat_runtime
from torchswat_runtime.engine import compiled
x = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
np.save(sys.argv[2], torchswat_runtime.load(sys.argv[1])(x))
assert compiled.native() is not None and "torch" not in sys.modules and "torchswat" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")
def test_the_wheel_where_there_is_no_torch(saved: Callable[..., Path], tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    settings = ("--config-settings", f"build-dir={tmp_path / 'build'}")
    run(*pip, "wheel", FOLDER, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, *settings)
    (wheel,) = tmp_path.glob("torchswat_runtime-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".cpp", ".h", ".o", ".a"))]
    assert wheel.stat().st_size < 10e6
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    for folder in Path(np.__file__).parents[1].glob("numpy*"):  # with the libraries that it brings
        (site / folder.name).symlink_to(folder)
    path, answer = saved(), tmp_path / "answer.npy"
    # -I -S: no current folder, no environment variables, and no packages but those in `site`.
    prelude = f"import sys; sys.path.insert(0, {str(site)!r})"
    run(sys.executable, "-I", "-S", "-c", prelude + ANSWER, path, answer, cwd=tmp_path)
    x = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
    expected = torchswat.load(path)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load(answer), expected, rtol=1e-4, atol=1e-5)
