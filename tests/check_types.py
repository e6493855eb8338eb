"""Every name that users import has a known type, for their type checkers: `make lint` runs this.

pyright reads the package as an installed one (its ``py.typed`` says so) and lists what a checker cannot know, or has
to infer. In the packages that users import neither is allowed; elsewhere, nothing that is unknown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torchswat

PUBLIC = (*torchswat.__all__, "data", "deploy", "integrations", "runtime")
NETWORKS = tuple(
    f"torchswat.models.{name}." for name in ("airbench", "densenet", "resnet", "vgg", "wide_resnet")
)
"""Classes whose layers are attributes, inferred as those of torch are; `torchswat.models.create` returns a Module."""
WITHOUT_LIBRARY = {
    "torchswat.integrations.LightningCallback",
    "torchswat.integrations.lightning.LightningCallback",
}
"""Their base class is known where Lightning is installed, which `make lint` does not need."""


def symbols() -> list[dict]:
    """Return what pyright says of every name, by the Python that runs this."""
    folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["pyright", "--ignoreexternal", "--verifytypes", "torchswat", "--outputjson"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PATH": os.pathsep.join([folder, os.environ["PATH"]])},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    assert len(found) > 2000, "pyright found another package than this one"
    return [symbol for symbol in found if symbol["isExported"]]


def is_allowed(symbol: dict) -> bool:
    """Return whether the type of a name is as well known as it must be."""
    name = symbol["name"]
    if name in WITHOUT_LIBRARY or name.startswith(NETWORKS):
        return True
    if name.split(".")[1] in PUBLIC:
        return symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]
    return not any("nknown" in each["message"] for each in symbol["diagnostics"])


def main() -> None:
    found = symbols()
    bad = [symbol for symbol in found if not is_allowed(symbol)]
    for symbol in bad:
        print(symbol["name"], *(each["message"] for each in symbol["diagnostics"]), sep="\n    ")
    sys.exit(f"{len(bad)} names are without a known type" if bad else 0)


if __name__ == "__main__":
    main()
