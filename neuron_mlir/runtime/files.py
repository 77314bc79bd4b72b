"""Binary files that appear whole or not at all, and arrays in `.npz` files."""

from __future__ import annotations

import errno
import io
import itertools
import os
import tempfile
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says when a file cannot grow."""

ARRAYS_LIMIT = 8 << 30
"""Bytes of unpacked arrays that are read: a small file can hold very many zeros."""


def check_output(path: str) -> None:
    """Find out before the work that a file cannot be written to `path`; nothing stays behind.

    Raises:
        NeuronError: a directory, a special file, in a directory that is not there or cannot be written to.
    """
    with replacing(path, commit=False):
        pass


@contextmanager
def replacing(path: str, *, commit: bool = True) -> Generator[BinaryIO]:
    """A file that takes the place of `path` at the end of the block, or goes when that raises.

    Where the system can, it has no name until it is complete. So even a process that is killed leaves nothing, unless
    it is hit between the two calls that put a complete file in the place of another.

    Raises:
        NeuronError: `path` is a directory or a special file, its directory is not there or cannot be written to, or the
            disk is full.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise NeuronError(f"output '{path}' is a directory", advice="naming a file, such as model.neff")
    if os.path.exists(target):
        if not os.path.isfile(target):
            raise NeuronError(f"output '{path}' is not a regular file", advice="naming a file, such as model.neff")
        if not os.access(target, os.W_OK):
            raise NeuronError(f"output '{path}' cannot be written: permission denied")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise NeuronError(f"output '{path}' is in a directory that does not exist", advice=f"mkdir -p '{folder}'")
    try:
        with replacing_file(target, commit=commit) as stream:
            yield stream
    except _Unwritable as error:
        raise NeuronError(f"output '{path}' cannot be written: {error.strerror}") from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NeuronError(f"output '{path}' cannot be written: {error.strerror}", advice="another disk") from error


class _Unwritable(OSError):
    """No file can be made in a directory."""


@contextmanager
def replacing_file(target: str, *, commit: bool = True) -> Generator[BinaryIO]:
    """As `replacing`, of the path of a regular file, or of none yet, with links resolved.

    Raises:
        OSError: the file cannot be made or written; the old one is as it was.
    """
    folder, name = os.path.split(target)
    temporary: str | None = None
    try:
        handle = _nameless(folder)
        if handle is None:
            handle, temporary = tempfile.mkstemp(prefix=f".{name[:50]}.", dir=folder)
    except OSError as error:
        raise _Unwritable(error.errno, error.strerror) from error
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
            if commit:
                # A new file gets the mode that open() would have given it, which mkstemp does not.
                mode = os.stat(target).st_mode & 0o777 if os.path.exists(target) else 0o666 & ~_umask()
                os.fchmod(handle, mode)
                if temporary is None:
                    temporary = _give_name(handle, folder, name)
                if temporary != target:
                    os.replace(temporary, target)
                temporary = None
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _nameless(folder: str) -> int | None:
    """A file of that file system that has no name yet; None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # What file systems and kernels without it say.
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            return None
        raise


def _give_name(handle: int, folder: str, name: str) -> str:
    """Link an open file under its name where that is free, else under a hidden one: a link cannot take the place of a
    file, so that takes a step more.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in itertools.count():
            hidden = f".{name[:50]}.{os.getpid()}.{number}" if number else name
            try:
                # With a directory given, Python lets the system follow the link that /proc has for an open file.
                os.link(f"/proc/self/fd/{handle}", hidden, src_dir_fd=directory, dst_dir_fd=directory)
            except FileExistsError:
                continue
            return os.path.join(folder, hidden)
    finally:
        os.close(directory)
    raise AssertionError


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_npz(path: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name; the same arrays give the same bytes.

    Raises:
        NeuronError: the file cannot be written.
        OSError: the disk is full, or the like. The old file stays as it was.
    """
    import numpy as np

    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.save(data, array, allow_pickle=False)
            # ZipInfo's default date is the same for all files, unlike the one that np.savez takes from the clock.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getbuffer())


def read_npz(path: str, limit: int = ARRAYS_LIMIT) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file, by name.

    Raises:
        NeuronError: no such file, not an `.npz` file, one with Python objects inside, or one of more than `limit` bytes
            when unpacked.
    """
    import numpy as np

    try:
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise NeuronError(f"'{path}' is not an .npz file", advice="numpy.savez(file, name=array, ..)")
            stream.seek(0)
            with zipfile.ZipFile(stream) as packed:
                size = sum(entry.file_size for entry in packed.infolist())
            if size > limit:
                raise NeuronError(f"'{path}' is too large when unpacked", needed=f"{size} bytes", available=limit)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise NeuronError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, SyntaxError) as error:
        text = " ".join(str(error).split())
        raise NeuronError(f"'{path}' is not an .npz file of plain arrays: {text}") from error
