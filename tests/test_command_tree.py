"""Every command of the command line: help, examples, types, lists, JSON, and what hostile values do to it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from torchswat import cli
from torchswat.bench import commands as bench

PRINT_NO_TABLE = {"serve", "report"}
"""Commands without ``--json``: a service, and one line that names a file."""

WORDS_OF_NUMBERS = {
    *("size", "seed", "seeds", "epochs", "period", "threads", "repeats", "batch", "port", "bytes"),
    *("waiting", "top", "jobs", "lr", "sparsity", "analyse", "steps", "rounds"),
}


def walk(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every group and every command, by what the user types."""
    command = command or typer.main.get_command(cli.app)
    yield " ".join(path), command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


TREE = dict(walk())
LEAVES = {name: command for name, command in TREE.items() if not getattr(command, "commands", None)}
FUNCTIONS: dict[str, Any] = {
    f"{prefix}{command.name or command.callback.__name__}": command.callback
    for prefix, app in (("", cli.app), ("bench ", bench.app))
    for command in app.registered_commands
}


def examples(command: Any) -> list[str]:
    lines = [line.strip() for line in (command.help or "").splitlines()]
    return [line for line in lines if line.startswith("torchswat ")]


def test_the_tree_is_found():
    assert {"train", "bench step", "doctor"} <= set(LEAVES) and {"", "bench"} <= set(TREE)
    assert set(LEAVES) == set(FUNCTIONS)
    assert ("--seed", int | None) in [(option, kind) for option, kind, _ in declared("train")]


@pytest.mark.parametrize("name", TREE)
def test_help_and_an_example(name):
    command = TREE[name]
    assert command.help.splitlines()[0].rstrip().endswith((".", ":", "cores.")), "no first sentence"
    assert any(line.startswith(f"torchswat {name}".rstrip()) for line in examples(command)), "no example"
    for parameter in command.params:
        if parameter.name not in ("install_completion", "show_completion"):
            assert parameter.help and parameter.help.rstrip()[-1] in ".)`", f"{parameter.name}: no help"


@pytest.mark.parametrize("name", TREE)
def test_examples_are_understood(name):
    """Each is parsed, with its options, types and ranges."""
    for line in examples(TREE[name]):
        words = shlex.split(line)[1:]
        group = words[0] in TREE and words[0] not in LEAVES
        path = " ".join(words[: 2 if group else 1])
        if "--help" not in words:
            LEAVES[path].make_context(path, words[2 if group else 1 :])


def declared(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Each parameter of a command as its function declares it: what is typed, its Python type, its settings."""
    hints = get_type_hints(FUNCTIONS[name], include_extras=True)
    for parameter, hint in hints.items():
        if get_origin(hint) is Annotated:
            kind, info = get_args(hint)
            is_option = isinstance(info, typer.models.OptionInfo)
            names = [*([info.default] if isinstance(info.default, str) else []), *(info.param_decls or ())]
            default = f"--{parameter.replace('_', '-')}" if is_option else parameter
            yield max([name for name in names if name[:1] == "-"] or [default], key=len), kind, info


def has(kind: Any, *wanted: type) -> bool:
    """Whether a type is one of `wanted`, or a union or list of it."""
    return kind in wanted or any(has(part, *wanted) for part in get_args(kind))


@pytest.mark.parametrize("name", LEAVES)
def test_numbers_are_typed_and_bounded(name):
    for option, kind, info in declared(name):
        if has(kind, int, float):
            assert None not in (info.min, info.max), f"{option} has no bounds"
        elif option[:2] == "--" and kind is not bool:
            numeric = set(option.split("-")) & WORDS_OF_NUMBERS
            assert not numeric, f"{option} looks like a number and is {kind}"


@pytest.mark.parametrize("name", LEAVES)
def test_lists_are_repeated_options(name):
    for option, kind, info in declared(name):
        words = info.help.lower()
        assert "comma" not in words and "several times" not in words
        is_list = any(get_origin(part) is list for part in (kind, *get_args(kind)))
        if option[:2] == "--":
            assert is_list == ("repeat it for several" in words), f"{option}: a list, or not?"


@pytest.mark.parametrize("name", LEAVES)
def test_json_where_a_table_is_printed(name):
    assert ("--json" in [option for option, _, _ in declared(name)]) == (name not in PRINT_NO_TABLE)


def test_the_groups_of_the_help_are_in_the_order_of_a_first_use():
    done = start("--help", COLUMNS="100")
    titles = [line.split("─ ")[1].split(" ─")[0] for line in done.stdout.splitlines() if line[:1] == "╭"]
    assert titles == ["Options", "First steps", "Use a trained network", "Lists", *titles[4:]]
    assert titles[4:] == ["Cost and speed", "The paper, and reports"]
    places = [done.stdout.index(f"│ {name} ") for name in ("demo", "train", "evaluate", "export", "predict")]
    assert places == sorted(places)


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torchswat", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


# ---- hostile values ----------------------------------------------------------------------------------------

HOSTILE = [
    "",
    " ",
    "-1",
    "9" * 23,
    "1" * 5000,
    "nan",
    "-inf",
    "1e999",
    "0x10",
    "{",
    "[[",
    "a,b",
    "\udcff",
    "é\n",
]
HOSTILE += [
    "*" * 50,
    "/nowhere/else",
    "None",
    "--",
    "%s",
    "!!python/object:os.system",
    "[bold]",
    "../..",
    "~",
]


def parsed(name: str, arguments: list[str]) -> str:
    """Parse the arguments of a command without running it; the refusal, or nothing."""
    try:
        LEAVES[name].make_context(name, arguments)
    except Exception as error:
        assert hasattr(error, "exit_code") or type(error).__name__ == "Exit", repr(error)
        return f"{getattr(error, 'exit_code', 0)}"
    return ""


@pytest.mark.parametrize("name", LEAVES)
def test_hostile_values_are_refused_or_taken_but_never_a_traceback(name):
    for parameter in LEAVES[name].params:
        for value in HOSTILE:
            flag = [max(parameter.opts, key=len)] if parameter.param_type_name == "option" else []
            assert parsed(name, [*flag, value]) in ("", "0", "2")


@settings(max_examples=200)
@given(st.sampled_from(sorted(LEAVES)), st.data(), st.text(max_size=30))
def test_any_text_is_refused_or_taken(name, data, text):
    parameter = data.draw(st.sampled_from(LEAVES[name].params))
    assert parsed(name, [max(parameter.opts, key=len), text]) in ("", "0", "2")


RUN = {
    "train": [["--recipe"], ["--model"], ["--data"], ["--algorithm"], ["--scope"], ["--method"], ["--skip"]],
    "evaluate": [[]],
    "export": [[]],
    "import": [[], ["x.onnx", "--shape"]],
    "predict": [["image.png"]],
    "serve": [[]],
    "benchmark": [[], ["x", "--peer"]],
    "cost": [
        ["--model"],
        ["--model", "resnet-digits", "--form"],
        ["--model", "resnet-digits", "--algorithm"],
    ],
    "summary": [["--model"], ["--model", "resnet-digits", "--skip"]],
    "reproduce": [[], ["9a", "--scale"]],
    "report": [[]],
    "bench products": [["--shape"], ["--isa"]],
    "bench step": [["--network"], ["--selection"]],
    "bench inference": [["--case"], ["--peer"]],
    "bench programs": [["--only"]],
    "bench memory": [["--device"], ["--network"]],
}
"""Commands with the option whose value is hostile, given last."""
OTHERS = ["", "9" * 23, "[[", "\udcff", "é\n", "[bold]"]


@pytest.mark.parametrize("name", RUN)
def test_commands_end_with_a_message(name, monkeypatch, capsys, tmp_path):
    """They run, in this process, as far as they come with values that mean nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHSWAT_DATA", raising=False)
    for before in RUN[name]:
        for value in OTHERS:
            monkeypatch.setattr(sys, "argv", ["torchswat", *name.split(), *before, value])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            captured = capsys.readouterr()
            assert ended.value.code in (1, 2), (before, value, captured.out)
            assert captured.err and "Traceback" not in captured.err


# ---- completion --------------------------------------------------------------------------------------------


def complete(words: str, **environment: str) -> list[str]:
    """What the shell offers after `words`, in a process that would fail to import torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from torchswat.cli import main; sys.argv = ['torchswat']; main()"
    )
    variables = {"_TORCHSWAT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    variables["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **variables, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "words, offered",
    [
        ("torchswat dem", ["demo"]),
        ("torchswat train --model resnet1", ["resnet18", "resnet101"]),
        ("torchswat train --algorithm forward", ["forward-activation", "forward-weight"]),
        ("torchswat train --recipe digits", ["digits-demo"]),
        ("torchswat cost --form im", ["imagenet"]),
        ("torchswat reproduce lem", ["lemma-b1"]),
    ],
)
def test_the_shell_completes_names_without_torch(words, offered):
    assert complete(words) == offered


def test_the_names_are_those_of_the_registries():
    from torchswat import data, models, options, selection
    from torchswat.bench import commands
    from torchswat.deploy.export import FORMATS
    from torchswat.experiments.registry import EXPERIMENTS
    from torchswat.experiments.scales import SCALES
    from torchswat.training.recipe import recipe_names
    from torchswat.training.views import Views

    assert list(options.MODELS) == models.names()
    assert data.names() == options.DATA_SETS
    assert set(options.FORMS) == {model.form for model in models.registry.MODELS}
    assert options.SCOPES == selection.SCOPES and list(options.METHODS) == list(selection.METHODS)
    assert get_args(Views) == options.VIEWS and list(options.FORMATS) == list(FORMATS)
    assert list(options.SCALES) == list(SCALES) and list(options.FIGURES) == list(EXPERIMENTS)
    assert list(options.INSTRUCTION_SETS) == list(commands.INSTRUCTION_SETS)
    assert options.complete_recipe("") == recipe_names()


# ---- JSON and progress in real processes -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models", "algorithms", "data", "recipes", "plan", "doctor"])
def test_json_is_json_alone(name):
    done = start(name, "--json")
    assert done.returncode == 0 and json.loads(done.stdout) is not None and done.stderr == ""


def on_a_terminal(*arguments: str) -> str:
    """What a command writes to standard error where that is a terminal."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are of Unix")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "torchswat", *arguments], stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # Linux ends a terminal so
        pass
    assert process.wait() == 0
    os.close(ours)
    return written.decode()


def test_progress_is_shown_on_terminals_alone():
    arguments = ("cost", "--model", "resnet-digits")
    written = on_a_terminal(*arguments)
    assert "counting" in written and "ends in" in written
    assert start(*arguments).stderr == ""


def test_nan_is_refused_whatever_the_bounds_do():
    """Versions of typer differ in whether NaN is within bounds."""
    from torchswat import options

    for check in (options.check_number, options.check_sparsity):
        with pytest.raises(typer.BadParameter, match="nan is not a number"):
            check(float("nan"))
    with pytest.raises(typer.BadParameter, match="less than 1"):
        options.check_sparsity([0.5, 1.0])
    assert options.check_sparsity([0.0, 0.99]) == [0.0, 0.99] and options.check_number(None) is None
