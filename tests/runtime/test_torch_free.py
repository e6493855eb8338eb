"""A file runs without torch: numpy and the compiled engine alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import torchswat

CODE = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
import numpy as np
from pathlib import Path
from torchswat.runtime.package import Package
from torchswat.runtime.session import Sessions

package = Package.read(Path(sys.argv[1]))
x = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
np.save(sys.argv[2], Sessions(package.graph, package.tensors).run([x], 1)[0])
"""


def test_a_session_needs_no_torch(saved: Callable[..., Path], tmp_path: Path):
    path = saved()
    source = str(Path(torchswat.__file__).parents[1])
    command = [sys.executable, "-c", CODE, str(path), str(tmp_path / "y.npy")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source})
    x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), torchswat.load(path)(x).numpy(), rtol=1e-4, atol=1e-5
    )
