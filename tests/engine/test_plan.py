"""The tuned plan: nothing is measured or written in a pass, and a question has one answer."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import BUILT
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat import select, sparsify_
from torchswat.engine import plan, plan_model
from torchswat.engine.loader import engine
from torchswat.engine.plan import TunedPlan, bucket, choose, followed, key_of, path, save, table
from torchswat.engine.race import race
from torchswat.engine.shape import ALL_DENSE, ALL_SPARSE, Choice, Shape
from torchswat.engine.timings import Timing, multiply_adds

SHAPE = Shape((4, 3, 8, 8), (5, 3, 3, 3), (1, 1), (1, 1))
POINTWISE = Shape((4, 3, 8, 8), (5, 3, 1, 1), (1, 1), (0, 0))
MATRIX = Shape((64, 30, 1, 1), (20, 30, 1, 1), (1, 1), (0, 0))
MIXED = Timing((1.0, 2.0), (2.0, 1.0), (1.0, 2.0))
CHOSEN = Choice(True, False, True)
OPPOSITE = Timing((2.0, 1.0), (1.0, 2.0), (2.0, 1.0))

sizes = st.integers(1, 300)
shapes = st.builds(
    lambda n, c, k, side, kernel, stride: Shape(
        (n, c, side, side), (k, c, kernel, kernel), (stride, stride), (kernel // 2, kernel // 2)
    ),
    *(sizes, sizes, sizes, st.integers(1, 64), st.sampled_from([1, 2, 3, 5, 7]), st.integers(1, 3)),
)
sparsities = st.floats(0, 0.99)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan's file, absent, and a process that knows nothing."""
    path = tmp_path / "folder" / "plan.json"
    monkeypatch.setenv("TORCHSWAT_PLAN", str(path))
    plan.PLAN.forget()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty, and a process that knows nothing."""
    monkeypatch.delenv("TORCHSWAT_PLAN")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan.PLAN.forget()
    return tmp_path / "cache"


def modelled(shape: Shape, sparsity: float = 0.8) -> Choice:
    return plan_model.choice(shape, plan.rounded(sparsity))


def opposite(choice: Choice) -> Timing:
    """Return a timing that chooses the opposite."""
    return Timing(*((2.0, 1.0) if sparse else (1.0, 2.0) for sparse in vars(choice).values()))


# ---- choosing ----------------------------------------------------------------------------------------------


@given(shapes, sparsities)
def test_the_model_decides_what_was_not_tuned(shape, sparsity):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCHSWAT_PLAN", "model")
        assert choose(shape, sparsity) == modelled(shape, sparsity)


def test_what_was_tuned_counts_for_its_bucket(file):
    large = Shape((100, 3, 29, 28), (5, 3, 3, 3), (1, 1), (1, 1))
    timing = opposite(modelled(large))
    plan.PLAN.learn({key_of(large, 0.8): timing})
    similar = Shape((112, 3, 32, 28), *[getattr(large, name) for name in ("weight", "stride", "padding")])
    assert choose(large, 0.8) == choose(similar, 0.84) == timing.choice()
    other = Shape((113, 3, 32, 28), *[getattr(large, name) for name in ("weight", "stride", "padding")])
    assert choose(other, 0.8) == modelled(other) and choose(large, 0.85) == modelled(large, 0.85)


@given(st.lists(st.tuples(shapes, sparsities), min_size=2, max_size=12), st.randoms())
def test_choices_do_not_depend_on_the_order_of_questions(questions, random):
    first, second = TunedPlan(), TunedPlan(most_choices=3)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCHSWAT_PLAN", "model")
        answers = {question: first.choose(*question) for question in questions}
        random.shuffle(questions)
        assert all(second.choose(*question) == answers[question] for question in questions)


def test_memory_is_bounded(file):
    tuned = TunedPlan(most_choices=50)
    for n in range(1, 400):
        tuned.choose(Shape((n, 3, 8, 8), (5, 3, 3, 3), (1, 1), (1, 1)), 0.8)
        assert 0 < len(tuned) <= 50


def test_threads_are_told_apart(file, monkeypatch):
    plan.PLAN.learn({key_of(SHAPE, 0.8): opposite(modelled(SHAPE))})
    here = choose(SHAPE, 0.8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    assert key_of(SHAPE, 0.8).endswith("-t77") and choose(SHAPE, 0.8) == modelled(SHAPE) != here


@pytest.mark.parametrize(("asked", "choice"), [("sparse", ALL_SPARSE), ("dense", ALL_DENSE)])
def test_the_environment_decides_for_all(file, monkeypatch, asked, choice):
    plan.PLAN.learn({key_of(SHAPE, 0.8): MIXED})
    monkeypatch.setenv("TORCHSWAT_PLAN", asked)
    assert choose(SHAPE, 0.8) == choose(MATRIX, 0.8) == choice


@pytest.mark.parametrize("asked", ["model", "off"])
def test_the_model_alone_on_request(cache, monkeypatch, asked):
    plan.PLAN.learn({key_of(SHAPE, 0.8): opposite(modelled(SHAPE))})
    assert choose(SHAPE, 0.8) != modelled(SHAPE)
    monkeypatch.setenv("TORCHSWAT_PLAN", asked)
    assert choose(SHAPE, 0.8) == modelled(SHAPE)
    assert plan.PLAN.learn({key_of(MATRIX, 0.8): MIXED}) is None
    assert len(table(cache / "torchswat" / "plan.json")[plan.machine()]) == 1


def test_a_known_shape_is_answered_at_once(file):
    choose(SHAPE, 0.8)
    best = min(_seconds(lambda: choose(SHAPE, 0.8), 2000) for _ in range(10))
    assert best < 10e-6  # measured: 1.3 microseconds


def test_a_new_shape_costs_little(file):
    best = min(_seconds(lambda: TunedPlan().choose(SHAPE, 0.8), 50) for _ in range(10))
    assert best < 1e-3  # measured: 70 microseconds


def _seconds(run, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


@given(shapes)
def test_buckets(shape):
    stands = bucket(shape)
    assert bucket(stands) == stands
    for size, rounded in zip(shape.input, stands.input, strict=True):
        assert size <= rounded < 1.25 * size + 1e-9 or size <= 8
    assert (stands.weight, stands.stride, stands.padding) == (shape.weight, shape.stride, shape.padding)
    assert shape.input[1] == stands.input[1]


def test_sizes_of_networks_stand_for_themselves():
    for size in (1, 7, 8, 14, 16, 28, 32, 56, 64, 112, 128, 224, 256):
        assert bucket(Shape((size, 3, size, size), (1, 3, 1, 1), (1, 1), (0, 0))).input == (
            size,
            3,
            size,
            size,
        )


# ---- nothing happens in a step -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_step_measures_writes_and_draws_nothing(cache, monkeypatch, training):
    written = []
    real = builtins.open

    def watched(name, mode="r", *rest, **options):
        if set(mode) & set("wax+"):
            written.append(name)
        return real(name, mode, *rest, **options)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr("io.open", watched)
    monkeypatch.setattr("os.fsync", lambda *_: written.append("fsync"))
    monkeypatch.setattr("torchswat.engine.race.race", lambda *_: pytest.fail("a race in a step"))
    model = sparsify_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)))
    model.train(training)
    for n in (1, 5, 16, 17, 33):
        x = torch.randn(n, 3, 8, 8)
        before = torch.get_rng_state()
        model(x).sum().backward()
        assert torch.equal(torch.get_rng_state(), before)
    assert not written and not cache.exists()


def test_threads_may_ask_at_once(file):
    tuned, failed = TunedPlan(most_choices=20), []
    questions = [Shape((n, 3, 8, 8), (5, 3, 3, 3), (1, 1), (1, 1)) for n in range(1, 90)]
    expected = [modelled(shape) for shape in questions]

    def ask() -> None:
        try:
            for _ in range(3):
                assert [tuned.choose(shape, 0.8) for shape in questions] == expected
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


FORKED = """
import os, threading
from torchswat.engine.shape import Shape
from torchswat.engine.plan import PLAN, choose
held, ended = threading.Event(), threading.Event()
def hold():
    with PLAN._lock:
        held.set()
        ended.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    choose(Shape((1, 3, 8, 8), (5, 3, 3, 3), (1, 1), (1, 1)), 0.8)
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ended.set()
raise SystemExit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_may_ask():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60).returncode == 7


# ---- the file ----------------------------------------------------------------------------------------------


def test_timings_are_stored_and_read_again(file):
    assert plan.PLAN.learn({key_of(SHAPE, 0.8): MIXED}) == file
    assert table() == {plan.machine(): {key_of(SHAPE, 0.8): MIXED}}
    assert [p.name for p in file.parent.iterdir()] == ["plan.json"]  # no temporary file is left
    assert TunedPlan().choose(SHAPE, 0.8) == CHOSEN


def test_timings_of_another_machine_are_kept_and_not_believed(file, monkeypatch):
    plan.PLAN.learn({key_of(SHAPE, 0.8): opposite(modelled(SHAPE))})
    monkeypatch.setattr(plan, "VERSION", plan.VERSION + 1)
    assert TunedPlan().choose(SHAPE, 0.8) == modelled(SHAPE)
    plan.PLAN.learn({key_of(SHAPE, 0.8): MIXED})
    assert len(table()) == 2


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_the_machine_is_that_of_the_engine_that_runs():
    with engine("reference"):
        assert "reference" in plan.machine()
    with engine("native"):
        assert "reference" not in plan.machine()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "null", '{"a": 1}', '{"a": {"b": {"forward": [1, 2]}}}', "\x00\xff", "[" * 100_000),
        '{"MACHINE": {"KEY": {"forward": [1], "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
        '{"MACHINE": {"KEY": {"forward": ["a", "b"], "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
        '{"MACHINE": {"KEY": {"forward": null, "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
    ],
)
def test_a_damaged_file_is_no_hindrance_and_is_replaced(file, content):
    key = key_of(SHAPE, 0.8)
    file.parent.mkdir()
    file.write_bytes(content.replace("MACHINE", plan.machine()).replace("KEY", key).encode("latin-1"))
    assert table() == {} and choose(SHAPE, 0.8) == modelled(SHAPE)
    assert plan.PLAN.learn({key: MIXED}) == file
    assert table() == {plan.machine(): {key: MIXED}} and choose(SHAPE, 0.8) == CHOSEN


def test_a_folder_that_cannot_be_made_is_no_hindrance(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "taken" / "plan.json"))
    assert choose(SHAPE, 0.8) == modelled(SHAPE)
    assert plan.PLAN.learn({key_of(SHAPE, 0.8): MIXED}) is None
    assert choose(SHAPE, 0.8) == CHOSEN  # as long as the process lasts


def test_a_folder_in_the_place_of_the_file_is_left_as_it_is(file, tmp_path, monkeypatch):
    folder = tmp_path / "plan"
    (folder / "kept").mkdir(parents=True)
    monkeypatch.setenv("TORCHSWAT_PLAN", str(folder))
    assert plan.PLAN.learn({key_of(SHAPE, 0.8): MIXED}) is None and choose(SHAPE, 0.8) == CHOSEN
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_processes_that_store_at_once_lose_nothing(file):
    code = (
        "import sys; from pathlib import Path; from torchswat.engine.plan import Timing, save\n"
        "for i in range(30): save(Path(sys.argv[1]), 'machine', "
        "{f'{sys.argv[2]}-{i}': Timing((1., 2.), (1., 2.), (1., 2.))})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name], env=os.environ) for name in "ab"
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert set(table()["machine"]) == {f"{name}-{i}" for name in "ab" for i in range(30)}
    assert [p.name for p in file.parent.iterdir()] == ["plan.json"]


def test_the_file_lies_in_the_users_cache(cache, monkeypatch, tmp_path):
    assert path() == cache / "torchswat" / "plan.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert path() == tmp_path / "home" / ".cache" / "torchswat" / "plan.json"


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_a_run_keeps_the_plan_it_began_with(cache, monkeypatch, tmp_path):
    key, first = key_of(SHAPE, 0.8), opposite(modelled(SHAPE))
    plan.PLAN.learn({key: first})
    own = tmp_path / "run" / "plan.json"
    with followed(own):
        assert path() == own and choose(SHAPE, 0.8) == first.choice()
    assert path() == cache / "torchswat" / "plan.json"
    plan.PLAN.learn({key: opposite(first.choice()), key_of(POINTWISE, 0.8): opposite(modelled(POINTWISE))})
    assert choose(SHAPE, 0.8) != first.choice()
    with followed(own):
        assert choose(SHAPE, 0.8) == first.choice() and choose(POINTWISE, 0.8) == modelled(POINTWISE)
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "other.json"))
    with followed(own):
        assert path() == tmp_path / "other.json"


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_a_plan_that_is_followed_is_that_of_its_own_thread(cache, tmp_path):
    seen = []
    with followed(tmp_path / "plan.json"):
        thread = threading.Thread(target=lambda: seen.append(path()))
        thread.start()
        thread.join()
    assert seen == [cache / "torchswat" / "plan.json"]


def test_an_unreadable_snapshot_is_no_hindrance(cache, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with followed(tmp_path / "taken" / "plan.json"):
        assert choose(SHAPE, 0.8) == modelled(SHAPE)


def test_what_is_stored_is_plain(file):
    assert save(file, "machine", {"key": MIXED})
    stored = {"forward": [1.0, 2.0], "grad_input": [2.0, 1.0], "grad_weight": [1.0, 2.0]}
    assert json.loads(file.read_text()) == {"machine": {"key": stored}}


# ---- products and races ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, POINTWISE])
def test_the_environment_chooses_for_all_products(monkeypatch, shape):
    monkeypatch.setenv("TORCHSWAT_PLAN", "dense")
    assert choose(shape, 0.8) == ALL_DENSE
    monkeypatch.setenv("TORCHSWAT_PLAN", "sparse")
    assert choose(shape, 0.8) == ALL_SPARSE


@pytest.mark.parametrize("shape", [SHAPE, POINTWISE, MATRIX])
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.95])
def test_a_race_leaves_the_state_of_torch_alone(shape, sparsity):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        try:
            timing = race(shape, sparsity)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == threads
    for pair in (timing.forward, timing.grad_input, timing.grad_weight):
        assert all(0 < milliseconds < 1e5 for milliseconds in pair)


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("filters", [16, 32, 64])
@pytest.mark.parametrize("columns", [1000, 2030, 2100, 4100, 8300])
def test_no_product_runs_sparse_that_has_no_kernel(monkeypatch, kernel, filters, columns):
    shape = Shape((2, 2, 5, 2 * columns), (filters, 2, kernel, kernel), (2, 2), (kernel // 2, kernel // 2))
    possible = plan_model.possible(shape, ALL_SPARSE)
    assert possible.forward and possible.grad_input
    assert possible.grad_weight or columns > 1000
    if possible.grad_weight:
        assert race(shape, 0.5, repeats=1).grad_weight[0] < 1e6


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
@pytest.mark.parametrize("narrow", [False, True])
def test_kernels_too_large_for_offsets_run_dense(narrow):
    shape = Shape((4, 1, 260, 260), (2, 1, 250, 260), (1, 1), (0, 0), narrow)
    assert plan_model.possible(shape, ALL_SPARSE) == Choice(False, False, True)
    assert race(shape, 0.9, repeats=1).grad_weight[0] < 1e6


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_a_race_of_fewer_samples_has_whole_pairs(monkeypatch):
    shape = Shape((34, 2, 4, 4), (2, 2, 3, 3), (1, 1), (1, 1), narrow=True)
    monkeypatch.setattr("torchswat.engine.race._MOST_MULTIPLY_ADDS", multiply_adds(shape) // 2)
    assert race(shape, 0.5, repeats=1).grad_weight[0] < 1e6


def test_maps_too_wide_for_the_kernels_offsets_run_dense(file):
    shape = Shape((2, 2, 3, 4300), (64, 2, 1, 1), (2, 2), (0, 0))
    assert not race(shape, 0.5, repeats=1).choice().grad_weight
    plan.PLAN.learn({key_of(shape, 0.5): Timing((1.0, 2.0), (1.0, 2.0), (1.0, 2.0))})  # of another width, say
    assert choose(shape, 0.5) == Choice(True, True, False)
    layer = sparsify_(nn.Sequential(nn.Conv2d(2, 64, 1, stride=2, bias=False)), sparsity=0.5)
    x = torch.randn(2, 2, 3, 4300)
    y = layer(x)
    mask = select(layer[0].weight, 0.5)
    expected = F.conv2d(x, torch.where(mask, layer[0].weight, 0), stride=2)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
