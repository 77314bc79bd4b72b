"""Binary files that appear whole or not at all, and arrays in `.npz` files."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says when a file cannot grow."""


def check_output(path: str) -> None:
    """Find out before the work that a file cannot be written to `path`; nothing stays behind.

    Raises:
        NeuronError: a directory, a special file, in a directory that is not there or cannot be written to.
    """
    with replacing(path, commit=False):
        pass


@contextmanager
def replacing(path: str, *, commit: bool = True) -> Generator[BinaryIO]:
    """A file beside `path` that takes its place at the end of the block, or goes when that raises."""
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
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=folder)
    except OSError as error:
        raise NeuronError(f"output '{path}' cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
        if commit:
            # mkstemp makes files private; a new file gets what open() would have given it.
            os.chmod(temporary, os.stat(target).st_mode & 0o777 if os.path.exists(target) else 0o666 & ~_umask())
            os.replace(temporary, target)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NeuronError(f"output '{path}' cannot be written: {error.strerror}", advice="another disk") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


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


def read_npz(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file, by name.

    Raises:
        NeuronError: no such file, not an `.npz` file, or one with Python objects inside.
    """
    import numpy as np

    try:
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise NeuronError(f"'{path}' is not an .npz file", advice="numpy.savez(file, name=array, ..)")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise NeuronError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, SyntaxError) as error:
        text = " ".join(str(error).split())
        raise NeuronError(f"'{path}' is not an .npz file of plain arrays: {text}") from error
