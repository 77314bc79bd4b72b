"""Files of tools: output that appears whole or not at all, and small JSON inputs."""

from __future__ import annotations

import json
import os
import sys
from io import StringIO
from pathlib import Path

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.files import replacing_file

STANDARD_OUTPUT = "-"
"""The file name that stands for it: `--json -`."""


def write_text(path: str, text: str) -> None:
    """Write a text file so that a reader sees the old content or all of the new, whatever happens in between.

    A path that is not a regular file (`/dev/null`, a pipe) is written directly.

    Raises:
        OSError: the file cannot be written; its old content is kept.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        Path(target).write_text(text, encoding="utf-8")
        return
    with replacing_file(target) as stream:
        stream.write(text.encode())


def check_writable(path: str) -> None:
    """Find out before the work, not after it, that an output cannot be written.

    Raises:
        NeuronError: the directory does not exist, or the path is a directory or not writable.
    """
    if path == STANDARD_OUTPUT:
        return
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise NeuronError(f"output '{path}' is a directory")
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise NeuronError(f"output '{path}' is in a directory that does not exist", advice=f"mkdir -p '{parent}'")
    if not os.access(target if os.path.exists(target) else parent, os.W_OK):
        raise NeuronError(f"output '{path}' cannot be written: permission denied")


def write_json(path: str, data: object) -> None:
    """Write JSON, indented, as `write_text` does; to standard output for `-`."""
    text = json.dumps(data, indent=2) + "\n"
    if path == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    write_text(path, text)


class DeferredFile(StringIO):
    """Text that is kept until `commit` writes it to a file at once."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def close(self) -> None:
        """Keep the text: the file is complete only at `commit`."""

    def commit(self) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        write_text(self.path, self.getvalue())
