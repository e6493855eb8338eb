"""One training at a time writes into a folder, however the one before ended."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchswat.errors import CheckpointError, InvalidValue
from torchswat.training import lock
from torchswat.training.interrupt import Interrupted
from torchswat.training.lock import FolderLock
from torchswat.training.loop import resume, train

from .conftest import write_recipe
from .test_resume import reached, results, wait_for


def test_the_second_is_told_who_holds_it(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(InvalidValue, match=rf"in use by process {os.getpid()} on .*, since 20"):
            FolderLock(tmp_path).__enter__()
        (tmp_path / ".lock").write_text("garbage")
        with pytest.raises(InvalidValue, match="in use by another process"):
            FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


def test_a_lock_ends_with_its_process_however_that_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from torchswat.training.lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InvalidValue, match=f"process {process.pid} on"):
        FolderLock(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with FolderLock(tmp_path):
        pass


def test_folders_made_for_nothing_are_removed(tmp_path):
    with FolderLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert not (tmp_path / "a").exists()
    with FolderLock(tmp_path / "a" / "b") as held:
        (held.folder / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()
    (tmp_path / "mine").mkdir()
    with FolderLock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The holder before removed its folder between our opening the file and locking it."""
    folder, opened = tmp_path / "run", []

    def lock_late(descriptor: int) -> None:
        if not opened:
            (folder / ".lock").unlink()
        opened.append(descriptor)
        lock_descriptor(descriptor)

    lock_descriptor = lock._lock_descriptor
    monkeypatch.setattr(lock, "_lock_descriptor", lock_late)
    with FolderLock(folder):
        assert len(opened) == 2
        with pytest.raises(InvalidValue, match="in use"):
            FolderLock(folder).__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(number, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_lock_descriptor", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), FolderLock(tmp_path):
        pass


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidValue, match="is a file"):
        FolderLock(tmp_path / "file").__enter__()
    with pytest.raises(CheckpointError, match="cannot write"):
        FolderLock(tmp_path / "file" / "run").__enter__()
    with pytest.raises(CheckpointError, match="too long"):
        FolderLock(tmp_path / ("x" * 300)).__enter__()


def test_two_processes_do_not_train_into_one_folder(tiny, start, tmp_path):
    """The second ends with words and code 2, and the first goes on, bit for bit as if alone."""
    recipe = tiny(optimizer={"epochs": 5})
    run, file = tmp_path / "my run", write_recipe(recipe, tmp_path)
    first = start("train", "--recipe", file, "--output", run)
    wait_for(first, reached(run, step=2))
    first.send_signal(signal.SIGSTOP)  # it may not finish meanwhile
    for arguments in (("train", "--resume", run), ("train", "--recipe", file, "--output", run)):
        second = start(*arguments)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2, errors
        assert f"in use by process {first.pid} on" in errors and "Traceback" not in errors
        assert f"torchswat train --resume '{run}'" in errors  # as a shell takes it
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    train(recipe, tmp_path / "whole")
    assert results(run) == results(tmp_path / "whole")


def test_a_training_in_this_process_holds_the_lock(tiny, tmp_path, monkeypatch):
    from torchswat.training.loop import Trainer

    def try_again(self: Trainer) -> None:
        with pytest.raises(InvalidValue, match="in use"):
            resume(self.folder.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", try_again)
    with pytest.raises(Interrupted, match=r"what was saved is kept\. Continue with: torchswat train"):
        train(tiny(), tmp_path / "run")
    assert Path(tmp_path / "run" / "recipe.yaml").exists()
