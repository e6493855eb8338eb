"""The command line: what users type, what they see, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from torchswat import cli

OPTIONS = {
    "demo": "help json output",
    "train": "algorithm analyse batch-size block data data-root epochs help json lr method model output period"
    " recipe resume scope seed set skip skip-broken sparsity",
    "evaluate": "data data-root help json pruned views",
    "export": "check data-root format help json output",
    "import": "help json output shape",
    "quantize": "help images json output",
    "predict": "help json threads top",
    "serve": "body-seconds header-seconds help host max-batch max-bytes max-connections max-waiting port threads",
    "benchmark": "batch-size help isa json output peer quick repeats streams threads",
    "recipes": "help json",
    "models": "help json",
    "algorithms": "help json",
    "data": "check data-root help json",
    "doctor": "data-root help json",
    "summary": "algorithm batch-size form help json model skip sparsity",
    "cost": "algorithm batch-size form help input-size json model skip sparsity",
    "plan": "clear help json",
    "reproduce": "dry-run help jobs json no-train output runs scale seeds set",
    "report": "help output title",
    "bench": "help",
}
TINY = [
    "--set",
    "data.train_limit=64",
    "--set",
    "data.test_limit=20",
    "--set",
    "threads=1",
    "--batch-size",
    "32",
]
TINY += ["--epochs", "1", "--set", "optimizer.milestones=[]", "--set", "model.width=8"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; return exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchswat", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_is_there_without_torch():
    code = (
        "import sys; sys.argv = ['torchswat', '--help']\n"
        "from torchswat.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules and 'pydantic' not in sys.modules\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout


def test_a_wrong_recipe_is_refused_without_torch():
    code = (
        "import sys; sys.argv = ['torchswat', 'train', '--set', 'sparse.sparsity=2']\n"
        "from torchswat.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert python("-c", code).returncode == 0


def test_a_summary_of_a_network(run):
    code, output, errors = run("summary", "--model", "resnet-digits", "--skip", "first", "--batch-size", "4")
    assert code == 0, errors
    assert "skip: 'first'" in output and "algorithm swat, iteration 0" in output and "fused" in output
    code, output, _ = run("summary", "--model", "resnet-digits", "--batch-size", "4", "--json")
    assert code == 0 and {layer["state"] for layer in json.loads(output)["layers"]} >= {"sparse", "fused"}


def test_the_options_are_these():
    """A new option is a decision: add it here too."""
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        found[name] = " ".join(sorted(option[2:] for option in options | {"--help"} if option[:2] == "--"))
    assert list(found.items()) == list(OPTIONS.items())


def test_as_a_module_and_without_arguments():
    done = python("-m", "torchswat")
    assert "Usage" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_without_the_extras_one_line_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = python("-m", "torchswat", "--help", PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == (
        'torchswat: the command line needs typer, which is not installed: pip install "torchswat[train]"\n'
    )


def test_without_one_of_the_extras(tmp_path):
    (tmp_path / "pydantic.py").write_text("raise ModuleNotFoundError(name='pydantic')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = python("-m", "torchswat", "recipes", PYTHONPATH=path)
    assert done.returncode == 2
    assert (
        done.stderr
        == 'torchswat: pydantic is needed for this and is not installed: pip install "torchswat[train]"\n'
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--model", "resnet_18"], "did you mean 'resnet18'?"),
        (["train", "--data", "cifar11"], "did you mean 'cifar10'?"),
        (["train", "--algorithm", "swatt"], "did you mean 'swat'?"),
        (["train", "--scope", "nhcw"], "did you mean 'nchw'?"),
        (["train", "--method", "sorted"], "did you mean 'sort'?"),
        (
            ["train", "--block", "2", "3"],
            "should be [filters, input channels], each 1, 2, 4 or 8, not [2, 3]",
        ),
        (["train", "--block", "2", "2", "--scope", "chw"], "allowed is scope 'nchw'"),
        (["train", "--recipe", "digits-dmo"], "did you mean 'digits-demo'?"),
        (["train", "--recipe", "none.yaml"], "no recipe file 'none.yaml'"),
        (["train", "--skip", "conv9"], "'conv9'"),
        (["train", "--set", "optimizer.lrr=1"], "did you mean 'optimizer.lr'?"),
        (["train", "--set", "nonsense"], "write it as"),
        (["train", "--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["train", "--resume", "nowhere", "--lr", "1"], "leave out optimizer.lr=1"),
        (["train", "--data", "cifar10", "--data-root", "nowhere"], "cifar-10"),
        (["train", "--batch-size", "9999"], "batch_size is 9999"),
        (["train", "--model", "resnet-digits", "--set", "model.form=cifar"], "form"),
        (["train", "--lr", "0"], "optimizer.lr: should be greater than 0"),
        (["train", "--set", "sparse.sparsity=1"], "sparse.sparsity: should be at least 0"),
        (["train", "--set", "sparse.sparsity={}"], "sparse.sparsity: should map at least one layer name"),
        (["train", "--set", "sparse.sparsity={1: 0.5}"], "sparse.sparsity: should map at least one layer"),
        (
            ["train", "--set", "sparse.skip=first, last"],
            "sparse.skip: should be a list, such as [first, last]",
        ),
        (["train", "--set", "seed=" + "9" * 23], "seed: should be less than or equal to 9223372036854775807"),
        (["train", "--set", "seed=" + "1" * 5000], "the value of seed is not valid YAML"),
        (["train", "--set", "seed=2026-99-99"], "the value of seed is not valid YAML"),
        (["train", "--set", "optimizer.lr=1e39"], "optimizer.lr: should be less than"),
        (["train", "--set", "seed=" + "[" * 3000], "the value of seed is not valid YAML"),
        (["train", "--set", "threads=100000000000"], "threads: should be less than or equal to 1024"),
        (["train", "--set", "optimizer.weight_decay=1e300"], "optimizer.weight_decay: should be less than"),
        (["train", "--set", "model.width=" + "9" * 23], "model.width: should be less than"),
        (["train", "--set", "name=../x"], "name: should hold neither slashes"),
        (["train", "--set", "data.root='\\0'", "--set", 'data.root="\\0"'], "data.root: should hold no null"),
        (["train", "--data-root", "~nobody-of-that-name/x"], "there is no such user"),
        (["train", "--data", "synthetic", "--set", "data.options={classes: a}"], "it must be an integer"),
        (["train", "--data", "synthetic", "--set", "data.options={shape: 3}"], "it must be integers"),
        (["train", "--data", "synthetic", "--set", "data.options={train: 10000000000000}"], "GiB a split"),
        (["evaluate", "nowhere"], "no checkpoint at nowhere"),
        (["cost", "--model", "resnet_18"], "did you mean 'resnet18'?"),
        (["cost", "--model", "resnet18", "--form", "cifer"], "did you mean 'cifar'?"),
    ],
)
def test_what_the_user_got_wrong_is_code_2_and_one_message(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    assert code == 2 and message in errors, errors
    assert errors.startswith("torchswat: ") and "Traceback" not in errors and output == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "trian"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--sparsity", "1"], "'--sparsity' / '-s': 1.0 would set every entry to zero"),
        (["train", "--sparsity", "-0.1"], "'--sparsity' / '-s'"),
        (["train", "--sparsity", "nan"], "'--sparsity' / '-s'"),
        (["train", "--sparsity", "{}"], "'--sparsity' / '-s'"),
        (["train", "--lr", "fast"], "'--lr'"),
        (["train", "--lr", "nan"], "'--lr'"),
        (["train", "--lr", "1e39"], "'--lr'"),
        (["train", "--period", "0"], "'--period'"),
        (["train", "--block", "2", "9"], "'--block'"),
        (["train", "--epochs", "1.5"], "'--epochs'"),
        (["train", "--seed", "9" * 23], "'--seed'"),
        (["train", "--seed", "1" * 5000], "'--seed'"),
        (["train", "--seed", "2026-99-99"], "'--seed'"),
        (["train", "--analyse", "0"], "'--analyse'"),
        (["train", "--skip", "first,last"], "repeat the option: --skip first --skip last"),
        (["cost"], "'--model'"),
        (["cost", "--model", "resnet18", "--sparsity", "1"], "must be less than 1"),
        (["cost", "--model", "resnet18", "--skip", "a, b"], "repeat the option: --skip a --skip b"),
        (["cost", "--model", "resnet18", "--input-size", "0"], "'--input-size'"),
        (["cost", "--model", "resnet18", "--input-size", "9" * 23], "'--input-size'"),
        (["cost", "--model", "resnet18", "--batch-size", "9" * 23], "'--batch-size'"),
        (["predict", "model", "image", "--threads", "9" * 23], "'--threads'"),
        (["reproduce", "9a", "--seeds", "9" * 23], "'--seeds'"),
        (["bench", "step", "--sparsity", "0.5,0.8"], "'--sparsity' / '-s'"),
        (["bench", "step", "--sparsity", "0.5", "--sparsity", "1"], "must be less than 1"),
        (["bench", "selection", "--sparsity", "-1"], "'--sparsity' / '-s'"),
    ],
)
def test_what_typer_finds_wrong_is_code_2(arguments, message, run):
    """The rest of the message is in the words of typer's version."""
    code, output, errors = run(*arguments)
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", errors).split())
    assert code == 2 and output == "" and "Error" in words and "Traceback" not in errors
    assert message in words, words


def test_train_evaluate_and_resume(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run("train", *TINY, "--sparsity", "0.5")
    assert code == 0, errors
    (folder,) = Path("runs").iterdir()
    assert str(folder) in output and "swat 50%" in output and output.count("epoch 1/1") == 1
    code, output, _ = run("evaluate", folder, "--json")
    accuracy = json.loads(output)["accuracy"]
    assert code == 0 and json.loads(output)["images"] == 20
    code, output, _ = run("evaluate", folder, "--pruned")
    assert code == 0 and f"pruned network, 20 test images of digits: accuracy {accuracy:.2f}%" in output
    code, _, errors = run("evaluate", folder, "--views", "mirror")
    assert code == 2 and "the training does not mirror those of digits" in errors
    code, _, errors = run("evaluate", folder, "--views", "mirrors")
    assert code == 2 and "did you mean 'mirror'?" in errors
    code, output, _ = run("train", "--resume", folder)
    assert code == 0 and "swat 50%" in output and "epoch 1/1" not in output
    code, output, _ = run("train", "--resume", folder, "--json")
    found = json.loads(output)
    assert code == 0 and found["title"] == "swat 50%" and found["folder"] == str(folder)
    assert found["best"]["sparse"] == accuracy
    code, _, errors = run("train", *TINY, "--output", folder)
    assert code == 2 and "already holds a run" in errors
    checkpoint = next((folder / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    code, _, errors = run("evaluate", checkpoint)
    assert code == 2 and "truncated" in errors


def test_a_run_that_diverges_is_code_1(run, tmp_path):
    code, _, errors = run("train", *TINY, "--lr", "1e30", "--epochs", "3", "--output", tmp_path / "run")
    assert code == 1 and "training stopped at epoch" in errors and "Traceback" not in errors


def test_data_that_cannot_be_written_is_code_1(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = run("train", *TINY, "--output", tmp_path / "file" / "run")
    assert code == 1 and "file" in errors and "Traceback" not in errors


def test_a_network_that_does_not_fit_into_memory_is_code_1(run, monkeypatch):
    """Torch says so by a RuntimeError of its CPU allocator; other RuntimeErrors are mistakes of ours."""
    from torchswat import models

    for error in (MemoryError("48 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 48 TiB")):
        monkeypatch.setattr(models, "create", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        code, _, errors = run("cost", "--model", "resnet18")
        assert code == 1 and "not enough memory" in errors and "48 TiB" in errors
    monkeypatch.setattr(models, "create", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("other")))
    monkeypatch.setattr(sys, "argv", ["torchswat", "cost", "--model", "resnet18"])
    with pytest.raises(RuntimeError, match="other"):
        cli.main()


def test_a_report_replaces_a_report_and_no_other_file(run, tmp_path):
    assert run("train", *TINY, "--output", tmp_path / "runs" / "one")[0] == 0
    page, other = tmp_path / "page.html", tmp_path / "notes.txt"
    other.write_text("mine")
    for _ in range(2):
        code, _, errors = run("report", tmp_path / "runs", "--output", page)
        assert code == 0, errors
    for path in (other, tmp_path / "runs"):
        code, _, errors = run("report", tmp_path / "runs", "--output", path)
        assert code == 2 and str(path) in errors
    assert other.read_text() == "mine"


def test_every_number_of_the_cost_table_as_json(run):
    code, output, _ = run("cost", "--model", "resnet18", "--sparsity", "0.8", "--json")
    total = json.loads(output)["total"]["macs"]
    assert code == 0 and total["dense"] / total["formula"] == pytest.approx(5, rel=0.01)
    code, table, _ = run("cost", "--model", "resnet18", "--sparsity", "0.8")
    assert code == 0 and "layer4.1.conv2" in table and "total" in table


@pytest.mark.parametrize("command", ["models", "algorithms", "data", "recipes"])
def test_lists(command, run):
    code, output, _ = run(command, "--json")
    rows = json.loads(output)
    assert code == 0 and len(rows) > 3
    code, table, _ = run(command)
    assert code == 0 and all(row["name"] in table for row in rows)


def test_data_that_are_there_and_that_are_not(run, tmp_path, data_root):
    code, output, _ = run("data", "--json", "--data-root", data_root)
    states = {row["name"]: row["state"] for row in json.loads(output)}
    assert code == 0 and states["cifar10"] == "found" and states["digits"] == "built in"
    _, output, _ = run("data", "--json", "--data-root", tmp_path)
    assert {row["name"]: row["state"] for row in json.loads(output)}["cifar10"] == "missing"


def demo_in_short(run, monkeypatch, folder: Path) -> None:
    """The demo with its recipe cut to one epoch of a few images: two runs side by side in one table."""
    from torchswat.training import recipe

    def short(name: str, overrides: list[str] | tuple[str, ...] = ()) -> recipe.Recipe:
        return load(name, [*overrides, *TINY[1:6:2], "optimizer.epochs=1", "optimizer.milestones=[]"])

    load = recipe.load_recipe
    monkeypatch.setattr(recipe, "load_recipe", short)
    code, output, errors = run("demo", "--output", folder)
    assert code == 0, errors
    assert re.search(r"dense\s.*swat 80%", output) and "curves.png" in output
    assert (folder / "dense" / "curves.png").exists() and (folder / "swat").is_dir()
    assert (folder / "comparison.png").exists() and "comparison.png" in output


def test_the_demo_without_data(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSWAT_DATA", str(tmp_path))
    demo_in_short(run, monkeypatch, tmp_path / "demo")
    assert "name: digits\n" in (tmp_path / "demo" / "swat" / "recipe.yaml").read_text()


def test_the_demo_on_fashion_mnist(run, monkeypatch, tmp_path, data_root):
    demo_in_short(run, monkeypatch, tmp_path / "demo")
    assert "name: fashion-mnist\n" in (tmp_path / "demo" / "swat" / "recipe.yaml").read_text()
