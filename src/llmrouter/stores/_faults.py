"""What went wrong with a store's files, in words that say what to do."""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING

from llmrouter.errors import StoreError, StoreUnusableError

if TYPE_CHECKING:
    from pathlib import Path

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ})
_PRIMARY = 0xFF
"""The part of a result code that says what kind of error it is."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def damaged(folder: Path, detail: object) -> StoreUnusableError:
    """The files do not hold what they should."""
    return StoreUnusableError(f"the store in {folder} is damaged ({detail}): run `llmrouter repair`")


def read_only(folder: Path) -> StoreUnusableError:
    """This process may not write."""
    return StoreUnusableError(f"the store in {folder} is read-only for this process")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection was in the way, so that it can be tried again."""
    return _code(error) & _PRIMARY == sqlite3.SQLITE_BUSY


def unread(folder: Path, error: sqlite3.Error) -> StoreError:
    """A read failed."""
    return _known(folder, error) or StoreError(f"the store in {folder} could not be read: {error}")


def unwritten(folder: Path, error: sqlite3.Error) -> StoreError:
    """A write failed, and its transaction with it."""
    return _known(folder, error) or StoreError(
        f"the store in {folder} could not be written: {error}{_advice(error)}; nothing was stored"
    )


def unopened(folder: Path, error: OSError | sqlite3.Error) -> StoreUnusableError:
    """The store could not be opened."""
    known = _known(folder, error)
    return known or StoreUnusableError(f"cannot open the store in {folder}: {error}{_advice(error)}")


def _known(folder: Path, error: OSError | sqlite3.Error) -> StoreUnusableError | None:
    if isinstance(error, OSError):
        return read_only(folder) if error.errno in _NO_RIGHTS else None
    code = _code(error)
    if not _DAMAGE.isdisjoint({code, code & _PRIMARY}):
        return damaged(folder, error)
    return read_only(folder) if code & _PRIMARY == sqlite3.SQLITE_READONLY else None


def _advice(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, OSError):
        return ": the disk is full, free space on it" if error.errno in _NO_SPACE else ""
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return ": the disk is full, free space on it"
    # A limit on file sizes, some quotas and a broken disk look alike from here.
    return ": the disk is full or broken, free space on it" if code & _PRIMARY == sqlite3.SQLITE_IOERR else ""


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; 0 for an error of Python's own."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code
