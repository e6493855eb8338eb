"""The public names are pinned here, and so is what their docstrings say; `import torchswat` stays light."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import torchswat
from torchswat import accounting, engine, fuse, integrations, summaries, tuning
from torchswat.runtime import network, package

PUBLIC = [
    "BatchNormReLU2d",
    "Sparsity",
    "algorithms",
    "angle",
    "cost",
    "count_steps_",
    "desparsify_",
    "errors",
    "fuse_",
    "load",
    "load_sparse_state_",
    "models",
    "prune_",
    "quantize",
    "save",
    "schedules",
    "select",
    "sparse_layers",
    "sparse_state",
    "sparsify_",
    "summary",
    "tune",
    "tune_allocator",
    "unfuse_",
]
HEAVY = {
    "accelerate",
    "matplotlib",
    "pandas",
    "PIL",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "yaml",
}


def test_the_public_names():
    assert torchswat.__all__ == PUBLIC
    assert all(hasattr(torchswat, name) for name in PUBLIC)


def test_every_public_name_is_documented():
    for name in PUBLIC:
        thing = getattr(torchswat, name)
        assert thing.__doc__ and ">>>" in thing.__doc__, f"{name} has no example"


def test_a_function_is_found_whatever_was_imported_before():
    """No module of the package has the name of a public function, which it would take the place of."""
    code = "import pkgutil, torchswat; print(*(m.name for m in pkgutil.iter_modules(torchswat.__path__)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in PUBLIC if name in run.stdout.split()} == {
        "algorithms",
        "errors",
        "models",
        "schedules",
    }


def test_import_needs_torch_and_numpy_alone():
    """A process that could not import anything else would still import the package."""
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import torchswat; "
        "print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "torchswat" in loaded and not loaded & HEAVY


# ---- docstrings --------------------------------------------------------------------------------------------

MODULES = (torchswat.algorithms, torchswat.schedules, torchswat.errors)
RESULTS = (
    *(accounting.Cost, accounting.LayerCost, accounting.Count, summaries.Summary, summaries.LayerSummary),
    *(fuse.FusionReport, fuse.Fused, tuning.TuningReport, tuning.TunedLayer),
    *(network.Network, package.Package, package.About),
)
"""Classes of what public functions return."""

WITHOUT_A_SOURCE = {
    *("info", "names", "algorithm", "sparse_layers", "sparse_state", "load_sparse_state_", "count_steps_"),
    *("load", "save", "unfuse_", "desparsify_", "summary", "tune"),
    *("Cost", "LayerCost", "Count", "Summary", "LayerSummary", "FusionReport", "Fused", "TuningReport"),
    *("TunedLayer", "Network", "Package", "About", "Steps", "ModelInfo"),
}
"""Names with no idea of anybody's behind them; exceptions are among them as well."""

SOURCE = re.compile(r"section|equation|Figure|Algorithm 1|appendix|arXiv:|\b(19|20)\d\d\b|\(3\)")
SHAPE = re.compile(r"shape|\([A-Za-z_]+,|0-dimensional|\(\.\.\.")
DTYPE = re.compile(r"float|bool|int|dtype|16, 32 or 64 bits")


def public_things() -> dict[str, Any]:
    """Every public function and class by its name, and every public method by class and name."""
    things: dict[str, Any] = {}
    for name in torchswat.__all__:
        if not inspect.ismodule(getattr(torchswat, name)):
            things[name] = getattr(torchswat, name)
    for module in MODULES:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__ and name[0] != "_" and callable(value):
                things[name] = value
    things |= {f"models.{name}": getattr(torchswat.models, name) for name in torchswat.models.__all__}
    things |= {thing.__name__: thing for thing in RESULTS}
    things["engine.info"] = engine.info
    for name, thing in list(things.items()):
        if inspect.isclass(thing):
            things |= {f"{name}.{method.__name__}": method for method in methods(thing)}
    for name in integrations.__all__:  # whose methods are those of the libraries
        things[f"integrations.{name}"] = getattr(integrations, name)
    return things


def methods(cls: type) -> Iterator[Callable]:
    """The public methods that a class itself defines."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and isinstance(value, classmethod | staticmethod):
            yield value.__func__
        elif not name.startswith("_") and inspect.isfunction(value) and name != "extra_repr":
            yield value


THINGS = public_things()


def sections(doc: str) -> dict[str, str]:
    """The sections of a numpydoc docstring by title; the text before them has none."""
    parts = re.split(r"^([A-Z][a-z ]+)\n-{3,}\n", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> dict[str, str]:
    """The names of a section of parameters, each with its type and description."""
    parts = re.split(r"^(\S.*)$", section, flags=re.MULTILINE)
    return {
        head.partition(" : ")[0].strip(): f"{head.partition(' : ')[2]}\n{text}"
        for head, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def parameters(thing: Any) -> list[str]:
    """The names that a caller gives."""
    taken = inspect.signature(thing).parameters.values()
    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    return [stars.get(p.kind, "") + p.name for p in taken if p.name not in ("self", "cls")]


def returns_something(function: Callable) -> bool:
    return inspect.get_annotations(function).get("return") not in ("None", None)


def raised(thing: Any) -> set[str]:
    """The errors of ours that the body of a function, or the checks of a class, raise by themselves."""
    functions = [thing] if not inspect.isclass(thing) else [vars(thing).get("__post_init__")]
    found: set[str] = set()
    for function in filter(None, functions):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc).partition("(")[0].removesuffix(".of")
                if hasattr(torchswat.errors, name):
                    found.add(name)
            if isinstance(node, ast.Call) and "check_sparsity" in ast.unparse(node.func):
                found.add("InvalidValue")
    return found


def is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def test_the_names_are_found():
    assert {"sparsify_", "Sparsity", "Cubic", "UnknownName.of", "Cost.total", "models.create"} <= set(THINGS)
    assert len(THINGS) > 50


@pytest.mark.parametrize("name", THINGS)
def test_the_first_line_is_a_sentence(name):
    first = inspect.cleandoc(THINGS[name].__doc__ or "").split("\n\n")[0]
    assert (first.rstrip().endswith((".", ":")) and first[0].isalnum()) or first[0] == "`", name


@pytest.mark.parametrize("name", THINGS)
def test_each_parameter_is_documented_and_no_other(name):
    thing = THINGS[name]
    if is_error(thing):
        return
    found = sections(thing.__doc__)
    documented = {**entries(found.get("Parameters", "")), **entries(found.get("Attributes", ""))}
    if inspect.isclass(thing):
        documented = {name: text for name, text in documented.items() if name in parameters(thing)}
        if "Parameters" not in found and not hasattr(thing, "__dataclass_fields__"):
            return  # its instances are made by functions of ours
    assert list(documented) == parameters(thing)
    for parameter, text in documented.items():
        assert text.partition("\n")[0].strip(), f"{parameter} has no type"


@pytest.mark.parametrize("name", THINGS)
def test_what_is_returned_is_documented(name):
    thing = THINGS[name]
    if inspect.isclass(thing):
        return
    found = sections(thing.__doc__)
    said = "Returns" in found or "Yields" in found
    assert said == returns_something(thing)


@pytest.mark.parametrize("name", THINGS)
def test_errors_are_documented(name):
    thing = THINGS[name]
    said = sections(thing.__doc__).get("Raises", "")
    for error in raised(thing):
        assert re.search(rf"\b{error}\b", said), f"{name} raises {error}"
    for word in re.findall(r"^\S.*$", said, flags=re.MULTILINE):
        for error in word.split(", "):
            assert hasattr(torchswat.errors, error), f"{error} is no error of ours"


@pytest.mark.parametrize("name", THINGS)
def test_there_is_an_example(name):
    """Doctests run it."""
    assert ">>>" in sections(THINGS[name].__doc__).get("Examples", "")


@pytest.mark.parametrize("name", THINGS)
def test_tensors_have_shapes_and_dtypes(name):
    thing = THINGS[name]
    if inspect.isclass(thing):
        return
    found, kinds = sections(thing.__doc__), inspect.get_annotations(thing)
    documented = entries(found.get("Parameters", ""))
    for parameter, kind in kinds.items():
        if "Tensor" not in str(kind):
            continue
        text = found["Returns"] if parameter == "return" else documented[parameter]
        assert SHAPE.search(text) and DTYPE.search(text), f"{parameter}: no shape or no dtype"


@pytest.mark.parametrize("name", [n for n in THINGS if "." not in re.sub(r"^(models|integrations)\.", "", n)])
def test_ideas_have_a_source(name):
    thing = THINGS[name]
    if is_error(thing) or name.removeprefix("models.") in WITHOUT_A_SOURCE:
        return
    assert SOURCE.search(sections(thing.__doc__).get("References", ""))


def test_the_checks_can_fail():
    def undocumented(a: int, b: int) -> int:
        """Do something.

        Parameters
        ----------
        a : int
            One.
        c
            Three.
        """
        raise torchswat.errors.InvalidValue("always")

    THINGS["undocumented"] = undocumented
    try:
        for check in (
            test_each_parameter_is_documented_and_no_other,
            test_what_is_returned_is_documented,
            test_there_is_an_example,
            test_ideas_have_a_source,
        ):
            with pytest.raises(AssertionError):
                check("undocumented")
    finally:
        del THINGS["undocumented"]
    assert raised(torchswat.schedules.Cubic) == {"InvalidValue"}
    assert raised(torchswat.sparsify_) == {"InvalidValue"}
