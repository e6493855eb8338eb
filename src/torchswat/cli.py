"""The command line: its commands in the order of a first use, and the one place where errors become messages.

Exit codes: 0 done, 1 the run failed, 2 something the user got wrong, 130 interrupted. Torch is imported by
the commands and not by their modules, so that ``--help`` is there at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from torchswat.errors import CheckpointError, NotFinite, TorchswatError
from torchswat.training.interrupt import Interrupted

INSTALL = 'pip install "torchswat[train]"'
try:
    import typer
    from rich.console import Console

    from torchswat import commands as show
    from torchswat import options
    from torchswat.bench import commands as bench
    from torchswat.deploy import commands as deploy
    from torchswat.experiments import commands as experiments
    from torchswat.report import commands as pages
    from torchswat.training import commands as training
except ModuleNotFoundError as missing:
    print(
        f"torchswat: the command line needs {missing.name}, which is not installed: {INSTALL}",
        file=sys.stderr,
    )
    sys.exit(2)

app = typer.Typer(
    name="torchswat",
    help="""Train networks with sparse weights and activations (SWAT).

    [dim]Examples:[/dim]
      torchswat demo
      torchswat train --recipe cifar-paper --algorithm swat --sparsity 0.9
      torchswat train --help
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Groups of the help and their commands, both in the order of a first use.
GROUPS: dict[str, tuple[Callable[..., Any], ...]] = {
    options.FIRST: (training.demo, training.train, training.evaluate),
    options.DEPLOY: (
        deploy.export,
        deploy.import_onnx,
        deploy.quantize,
        deploy.predict,
        deploy.serve,
        bench.benchmark,
    ),
    options.LISTS: (training.recipes, show.models, show.algorithms, show.data),
    options.COST: (show.doctor, show.summary, show.cost, bench.plan),
    options.PAPER: (experiments.reproduce, pages.report),
}
NAMES = {"import_onnx": "import"}  # a word that Python keeps to itself
for group, commands in GROUPS.items():
    for command in commands:
        name = NAMES.get(command.__name__)
        app.command(name, rich_help_panel=group)(command)
app.add_typer(bench.app, name="bench", rich_help_panel=options.COST)


def main() -> None:
    """Run the command line and end the process."""
    from torchswat.engine.allocator import tune_allocator

    tune_allocator()
    for stream in (sys.stdout, sys.stderr):  # a path, or a terminal without UTF-8, is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Interrupted as error:
        _leave(error, code=130)
    except (NotFinite, CheckpointError) as error:
        _leave(error, code=1)
    except TorchswatError as error:
        _leave(error, code=2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "torchswat":
            raise
        _leave(f"{error.name} is needed for this and is not installed: {INSTALL}", code=2)
    except OSError as error:
        _leave(error, code=1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _leave(f"not enough memory: {error} A smaller batch or a narrower network needs less.", code=1)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch has an exception of its own for GPUs only."""
    kinds = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def _leave(problem: object, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"torchswat: {problem}", markup=False, highlight=False)
    sys.exit(code)
