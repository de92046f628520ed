"""Checks that come before the work: numbers that count something, and places that something will be written to.

A stage may compute for minutes before it writes, so a command asks first whether it will be able to.
"""

import os
from pathlib import Path

from pipeline.errors import UserError


def at_least_one(value: int, option: str) -> int:
    """Return a number that counts something.

    Raises:
        UserError: It is less than 1.
    """
    if value < 1:
        raise UserError(expected="1 or more", found=str(value), where=option)
    return value


def writable_folder(path: Path, option: str) -> Path:
    """Return a folder that is there or can be made, and that can be written into; nothing is made yet.

    Raises:
        UserError: It is a file, lies below one, or may not be written.
    """
    present = next(folder for folder in (path, *path.parents, Path()) if folder.exists() or folder.is_symlink())
    if not present.is_dir():
        found, remedy = f"the file {present}", f"choose another {option}"
    elif not os.access(present, os.W_OK | os.X_OK):
        found, remedy = f"that {present} may not be written", f"allow writing there, or choose another {option}"
    else:
        return path
    raise UserError(expected="a folder to write into", found=found, where=f"{option} {path}", remedy=remedy)


def writable_file(path: Path, option: str) -> Path:
    """Return a file that can be written.

    Raises:
        UserError: It is a folder, or its folder cannot be written into.
    """
    if path.is_dir():
        raise UserError(expected="a file to write", found="a folder", where=f"{option} {path}")
    writable_folder(path.parent, option)
    return path
