"""The files of a SQLite store: their mode, and the write-ahead log."""

import logging
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 1.0
CHECKPOINT_WAIT = 0.1  # seconds that a checkpoint makes writers wait for readers
LOG_PAGES = 25_000  # 100 MB


def create_private(path: str) -> None:
    """Create a file that only its owner may read; SQLite gives its log the same mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    if Path(path).stat().st_mode & 0o077:
        logger.warning("%s: other users of this machine may read it; run chmod 600", path)


def checkpoint_log(path: str, closed: threading.Event, erased: threading.Event) -> None:
    """Move the write-ahead log into the file every second, until the store is closed."""
    connection = sqlite3.connect(path, timeout=CHECKPOINT_WAIT, isolation_level=None)
    pages = 0
    while not closed.wait(CHECKPOINT_SECONDS):
        # RESTART makes writers wait once, so use it only where the log has grown long; TRUNCATE
        # does too, and removes deleted content from the log
        mode = "TRUNCATE" if erased.is_set() else "RESTART" if pages > LOG_PAGES else "PASSIVE"
        with suppress(sqlite3.Error):  # another process holds the file, or the disk is full
            busy, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            if mode == "TRUNCATE" and not busy:
                erased.clear()
    connection.close()
