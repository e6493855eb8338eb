"""Install a wheel into a clean environment and use it from outside of the checkout.

    python tests/try_wheel.py dist/torchswat-*.whl        # what `make wheel-test` runs
    python tests/try_wheel.py --installed                 # tries the installation of this Python

Nothing of the checkout is imported: a process in another folder, without PYTHONPATH, sees the wheel alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LIBRARY = """
import importlib.resources, sys, torch, torchswat
from torchswat import engine
assert importlib.resources.files("torchswat").joinpath("py.typed").is_file()
assert engine.info()["engine"] == "native", engine.info()
model = torchswat.sparsify_(torchswat.models.create("resnet-digits"), sparsity=0.8)
report = torchswat.fuse_(model)
assert report.fused
model(torch.randn(4, 1, 8, 8)).logsumexp(1).sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
torchswat.save(torchswat.prune_(model), sys.argv[1], input_shape=(1, 8, 8))
assert torchswat.load(sys.argv[1])(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
assert "rich" not in sys.modules and "pydantic" not in sys.modules
print("library", torchswat.__version__, engine.info()["isa"], torch.__version__)
"""


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in `folder` and return what it prints; end where it fails."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TORCHSWAT"))
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=clean, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def use(python: Path, folder: Path) -> None:
    """Use the installation of `python` as a library and, where its libraries are installed, as a command."""
    print(run(python, "-c", LIBRARY, folder / "network.safetensors", folder=folder), end="")
    if (
        run(
            python, "-c", "import importlib.util as u; print(u.find_spec('typer') is not None)", folder=folder
        )
        == "False\n"
    ):
        return
    facts = json.loads(run(python, "-m", "torchswat", "doctor", "--json", folder=folder))
    runtimes = facts["engine"].get("OpenMP runtimes loaded", [])
    if len(runtimes) > 1:
        sys.exit(f"several OpenMP runtimes are in one process: {', '.join(runtimes)}")
    short = ("--epochs", "1", "--set", "optimizer.milestones=[]", "--set", "data.train_limit=64")
    summary = json.loads(
        run(python, "-m", "torchswat", "train", *short, "--json", "--output", "run", folder=folder)
    )
    print(f"command line: {summary['title']}, {summary['last']['pruned']:.1f} % of the digits after 2 steps")


def install(wheel: Path, folder: Path, packages: Path | None) -> Path:
    """Make an environment in `folder` with the wheel in it, and return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if packages is not None:
        run(*pip, "--no-deps", wheel, folder=folder)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "packages.pth").write_text(f"{packages}\n")
    else:
        run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[train]", folder=folder)
    return python


def main() -> None:
    """Try the wheel that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, nargs="?", help="the wheel")
    parser.add_argument("--installed", action="store_true", help="install nothing")
    parser.add_argument("--packages", type=Path, help="folder of packages to see instead of installing them")
    given = parser.parse_args()
    if (given.wheel is None) != given.installed:
        parser.error("name one wheel, or --installed")
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        (folder / "work").mkdir()
        python = (
            Path(sys.executable)
            if given.installed
            else install(
                given.wheel.resolve(), folder / "environment", given.packages and given.packages.resolve()
            )
        )
        use(python, folder / "work")


if __name__ == "__main__":
    main()
