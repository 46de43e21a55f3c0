"""Files are written whole or not at all, and what goes wrong is told of the file that was asked for."""

import errno
import os

import numpy as np
import pytest

from hranet_arch import files
from hranet_arch.errors import InputError


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old ü")
    with pytest.raises(RuntimeError), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text("utf-8") == "old ü" and os.listdir(tmp_path) == ["a.txt"]
    files.write_text(path, "new")
    assert path.read_text("utf-8") == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_an_error_is_about_the_file_that_was_asked_for(tmp_path):
    """Also one of a disk that is full, of which NumPy says only how much it has written."""
    with pytest.raises(FileNotFoundError) as error:
        files.write_text(tmp_path / "gone" / "a.txt", "text")
    assert error.value.filename == str(tmp_path / "gone" / "a.txt")
    with pytest.raises(OSError, match="No space left") as error, files.whole_file(tmp_path / "a.bin"):
        raise OSError("144000 requested and 102272 written")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))
    with pytest.raises(OSError, match="^encoder error -2$"), files.whole_file(tmp_path / "a.jpg"):
        raise OSError("encoder error -2")  # Pillow's, of something else than the disk
    with pytest.raises(FileNotFoundError) as error, files.whole_file(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(np.fromfile(tmp_path / "source.bin", np.uint8))
    assert error.value.filename == str(tmp_path / "source.bin")


def test_a_folder_that_cannot_be_written_to_is_refused_and_not_made(tmp_path, monkeypatch):
    files.require_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/x: cannot be written to: .*file is a file"):
        files.require_writable(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # as root one may write everywhere
    with pytest.raises(InputError, match="new/folder: cannot be written to: .* may not be written to"):
        files.require_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == ["file"]
