"""The lock of a run folder: one training writes into it at a time.

The operating system locks the file ``.lock`` in the folder, and ends the lock with the process that holds it,
however that dies. The file itself stays: whether it is locked counts, not whether it exists.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from torchswat.errors import CheckpointError, InvalidValue
from torchswat.training.run_folder import resume_command

NAME = ".lock"
_HELD_ELSEWHERE = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_BYTE = 2**30  # Windows locks a range of bytes, which nobody else can read: one behind the text


class FolderLock:
    """Hold the exclusive lock of a folder within a ``with`` block.

    Where the file system cannot lock (some network file systems), one warning says so and the block runs
    without. Folders that were made for the lock are removed again where the block leaves nothing in them.

    Parameters
    ----------
    folder : Path
        Is made where it does not exist.

    Raises
    ------
    InvalidValue
        Another process, or another block of this one, holds the lock; the message names it.
    CheckpointError
        The file of the lock cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with FolderLock(folder):
    ...     FolderLock(folder).__enter__()
    Traceback (most recent call last):
        ...
    torchswat.errors.InvalidValue: the run in ... is in use by process ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._descriptor: int | None = None
        self._made: list[Path] = []  # folders, the innermost first

    def __enter__(self) -> FolderLock:
        while self._descriptor is None:
            descriptor = self._open()
            try:
                self._lock(descriptor)
                if not self._is_current(descriptor):  # the holder before removed the file
                    os.close(descriptor)
                    continue
                _write_holder(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is None:
            return
        if self._made and [entry.name for entry in self.folder.iterdir()] == [NAME]:
            self._remove_folders()
        os.close(self._descriptor)  # ends the lock
        self._descriptor = None

    def _open(self) -> int:
        try:
            missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._made = self._made or missing
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileExistsError:
            raise InvalidValue(f"{self.folder} is a file: a run needs a folder") from None
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _is_current(self, descriptor: int) -> bool:
        """Whether the open file is still the one at the path."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except OSError:
            return False

    def _remove_folders(self) -> None:
        with suppress(OSError):  # Windows removes no open file; and a folder above may be in use by now
            self.path.unlink()
            for folder in self._made:
                folder.rmdir()

    def _lock(self, descriptor: int) -> None:
        try:
            _lock_descriptor(descriptor)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                raise InvalidValue(
                    f"the run in {self.folder} is in use by {_read_holder(descriptor)}. Wait until that has "
                    f"ended or stop it, then continue the run with: {resume_command(self.folder)}"
                ) from None
            warnings.warn(
                f"{self.folder} cannot be locked ({error.strerror or error}): take care that no other "
                "process trains into it at the same time",
                stacklevel=4,
            )


if sys.platform == "win32":
    import msvcrt

    def _lock_descriptor(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_descriptor(descriptor: int) -> None:
        """Lock an open file, or raise the OSError that says why not."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_holder(descriptor: int) -> None:
    """Say who holds the lock; only the message of the next one suffers where that cannot be written."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, (json.dumps(holder) + "\n").encode())


def _read_holder(descriptor: int) -> str:
    """Who holds the lock, as it wrote itself; another process where that cannot be read."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
