"""``torchswat bench`` and ``torchswat plan``: what users type, what they see, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import typer

from torchswat import cli
from torchswat.bench import commands
from torchswat.engine import plan
from torchswat.engine.shape import Shape

OPTIONS = {
    "products": "isa json output quick repeats shape sparsity threads",
    "step": "isa json network output quick repeats selection sparsity threads",
    "selection": "isa json output quick repeats sparsity threads",
    "memory": "batch-size device isa json network output quick sparsity threads",
    "inference": "case isa json output peer quick repeats sparsity threads",
    "roofline": "isa json network output quick repeats sparsity threads",
    "programs": "against isa json only output quick repeats threads",
}


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


def test_the_options_are_these():
    found = {
        name: " ".join(sorted(o[2:] for p in command.params for o in p.opts if o[:2] == "--"))
        for name, command in typer.main.get_command(commands.app).commands.items()
    }
    assert found == OPTIONS


def test_the_commands_are_there_without_torch():
    code = "import sys, torchswat.errors; before = 'torch' in sys.modules; import torchswat.bench.commands; "
    code += "assert before or 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_products_table_file_and_drawing(tiny, run, tmp_path):
    path = tmp_path / "products.json"
    code, output, errors = run(
        "bench", "products", "--shape", tiny, "-s", 0.8, "--repeats", 1, "--output", path
    )
    assert code == 0, errors
    assert "Geometric mean" in output and "grad_weight" in output and "…" not in output
    assert len(json.loads(path.read_text())["rows"]) == 3
    assert path.with_suffix(".svg").exists() and path.with_suffix(".png").exists()
    assert f"Written: {path}" in output and "1 repeats" not in output and "medians of 1" in output


def test_step(tiny, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--network", tiny, "--selection", "histogram:2", "--quick", "--repeats", 1)
    code, output, errors = run("bench", "step", *arguments)
    assert code == 0, errors
    (written,) = (tmp_path / "runs" / "bench").glob("*-step.json")
    rows = json.loads(written.read_text())["rows"]
    assert [(row["how"], row["sparsity"]) for row in rows if row["algorithm"] == "swat"] == [
        ("histogram:2", 0.8)
    ]
    assert "Where a sparse step goes" in output and "histogram:2" in output


def test_selection(run, tmp_path, monkeypatch):
    from torchswat.bench import selection

    monkeypatch.setattr(selection, "SIZES", (3000,))
    path = tmp_path / "selection.json"
    code, output, errors = run("bench", "selection", "--quick", "--output", path)
    assert code == 0, errors
    assert "numpy.partition" in output and "3,000" in output
    assert [file.name for file in tmp_path.iterdir()] == ["selection.json"]


def test_programs(run, tmp_path):
    path = tmp_path / "programs.json"
    code, output, errors = run(
        "bench", "programs", "--only", "layer-overhead", "--repeats", 1, "--output", path
    )
    assert code == 0, errors
    assert "40 us" in output and "F.conv2d" in output
    assert (
        "over other version" not in output and "outside kernels" not in output and "asked over" not in output
    )
    assert len(json.loads(path.read_text())["rows"]) == 4


def test_memory(tiny, run, tmp_path, monkeypatch):
    from torchswat.bench import memory
    from torchswat.bench.footprint import measure

    monkeypatch.setattr(memory, "measure_apart", measure)
    path = tmp_path / "memory.json"
    code, output, errors = run("bench", "memory", "--quick", "--network", tiny, "--output", path)
    assert code == 0, errors
    assert "Memory of a training step" in output and "int8" in output and "by layer" in output
    assert len(json.loads(path.read_text())["rows"]) == 4 and "medians" not in output
    assert path.with_suffix(".svg").exists() and path.with_suffix(".png").exists()


def test_threads(tiny, run, tmp_path):
    before = torch.get_num_threads()
    try:
        path = tmp_path / "products.json"
        arguments = ("--shape", tiny, "-s", 0.5, "--repeats", 1, "--threads", before + 1, "--output", path)
        assert run("bench", "products", *arguments)[0] == 0
        assert json.loads(path.read_text())["circumstances"]["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_instruction_set_is_in_force_before_torch_is_imported(run, monkeypatch, tmp_path):
    """The command runs itself again, in a process with another environment."""
    seen = {}

    def fake(command, env, check):
        seen.update(command=command, env=env)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(commands.subprocess, "run", fake)
    code, output, _ = run("bench", "products", "--isa", "avx2", "--quick")
    assert code == 7 and output == ""
    assert seen["command"][1:] == ["-m", "torchswat", "bench", "products", "--isa", "avx2", "--quick"]
    assert (seen["env"]["TORCHSWAT_ISA"], seen["env"]["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")
    assert "TORCHSWAT_ISA" not in os.environ or os.environ["TORCHSWAT_ISA"] != "avx2"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["products", "--shape", "3x3_64"], "unknown shape '3x3_64': did you mean '3x3-64'?"),
        (["products", "--isa", "avx22"], "did you mean 'avx2'?"),
        (["step", "--network", "resnet_18"], "did you mean 'resnet18'?"),
        (["step", "--selection", "sampel:1"], "did you mean 'sample'?"),
        (["step", "--selection", "sample:x"], "METHOD:PERIOD"),
        (["programs", "--only", "mlp-x65"], "did you mean 'mlp-x64'?"),
        (["programs", "--only", "mlp-x64", "--against", "."], "has no torchswat"),
        (["memory", "--network", "resnet_18"], "did you mean 'resnet18'?"),
        (["memory", "--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_what_the_user_got_wrong_is_code_2_and_one_message(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run("bench", *arguments)
    assert code == 2 and message in errors and errors.startswith("torchswat: ") and output == ""
    assert list(tmp_path.iterdir()) == []


def test_threads_beyond_all_processors_are_refused(run):
    code, _, errors = run("bench", "products", "--threads", "100000000000")
    assert code == 2 and "'--threads'" in errors


def test_the_record_as_json(tiny, run, tmp_path):
    path = tmp_path / "products.json"
    arguments = ("--shape", tiny, "-s", 0.8, "--repeats", 1, "--output", path, "--json")
    code, output, errors = run("bench", "products", *arguments)
    assert code == 0 and json.loads(output) == json.loads(path.read_text()), errors
    assert f"Written: {path}" in errors


RECORD = {"benchmark": "products", "circumstances": {}, "rows": [], "summary": [], "remarks": []}


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "thesis.txt",
            "ten years of work",
            "which is no result of `bench products`: it would be overwritten",
        ),
        ("other.json", json.dumps({"benchmark": "products"}), "which is no result of `bench products`"),
        ("step.json", json.dumps({**RECORD, "benchmark": "step"}), "which is no result of `bench products`"),
        ("list.json", "[" * 100_000, "which is no result of `bench products`"),
        ("a.svg", None, "where a drawing goes: name a JSON file"),
        (".", None, "a folder: name a JSON file"),
    ],
)
def test_a_result_overwrites_no_other_file(name, content, message, run, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    code, _, errors = run("bench", "products", "--output", path)
    assert code == 2 and message in errors
    assert content is None or path.read_text() == content


def test_a_result_overwrites_its_own_kind_but_no_drawing(tiny, run, tmp_path):
    arguments = ("bench", "products", "--shape", tiny, "-s", 0.8, "--repeats", 1, "--output")
    path, empty = tmp_path / "a.json", tmp_path / "empty"
    empty.touch()
    assert [run(*arguments, file)[0] for file in (path, path, empty)] == [0, 0, 0]
    path.unlink()
    code, _, errors = run(*arguments, path)
    assert code == 2 and "a.svg, which is there already, would be overwritten" in errors


@pytest.fixture
def plan_file(tmp_path, monkeypatch):
    """A plan of two machines, this one and another."""
    timing = {"forward": [1.0, 2.5], "grad_input": [3.0, 2.0], "grad_weight": [1.0, 4.0]}
    shape = Shape((128, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1))
    slower = {product: [2.0, 1.0] for product in timing}
    path = tmp_path / "plan.json"
    rows = {f"{shape}-S0.80-t2": timing, f"{shape}-S0.50-t2": slower}
    path.write_text(json.dumps({plan.machine(): rows, "another processor": {f"{shape}-S0.50-t8": timing}}))
    monkeypatch.setenv("TORCHSWAT_PLAN", str(path))
    return path


def test_the_plan_as_a_table(plan_file, run):
    code, output, _ = run("plan")
    assert code == 0 and f"{plan.machine()} (this machine)" in output and "another processor" in output
    assert re.search(r"128x64x32x32-64x3x3-s11-p11-S0.80-t2 .*1.00 / 2.50 .*forward, grad_weight", output)
    assert re.search(r"S0.50-t2 .*nothing", output) and str(plan_file) in output


def test_the_plan_as_json(plan_file, run):
    code, output, _ = run("plan", "--json")
    rows = json.loads(output)
    assert code == 0 and len(rows) == 3
    assert rows[0]["forward"] == {"sparse_ms": 1.0, "dense_ms": 2.5}
    assert [row["sparse"] for row in rows] == [["forward", "grad_weight"], [], ["forward", "grad_weight"]]
    assert rows[2]["machine"] == "another processor"


def test_the_plan_forgotten(plan_file, run):
    code, output, _ = run("plan", "--clear")
    assert code == 0 and "Removed 3 timings" in output and not plan_file.exists()
    code, output, _ = run("plan", "--clear")
    assert code == 0 and "Removed 0 timings" in output
    code, output, _ = run("plan")
    assert code == 0 and "Nothing is tuned yet" in output
    assert run("plan", "--json")[1].strip() == "[]"


def test_both_at_once_make_no_sense(plan_file, run):
    code, _, errors = run("plan", "--clear", "--json")
    assert code == 2 and "leave out one of" in errors and plan_file.exists()
