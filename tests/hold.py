"""Work for hash processes that ends when a test says so."""

import os
from pathlib import Path


class Hold:
    """What work waits for: a pipe with a name, which opens once somebody else holds the other end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = -1
        os.mkfifo(path)

    def release(self) -> None:
        """Let all work go on, now and later."""
        if self._opened < 0:
            self._opened = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        """Give the pipe back."""
        self.release()
        os.close(self._opened)


def wait_for(path: Path) -> None:
    """Work that ends when the pipe is opened."""
    os.close(os.open(path, os.O_RDONLY))
