"""Libraries that load others merely because they are installed: `with absent("name"): import library` hides those from it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """Make imports of the modules `names` fail inside, where they are not loaded yet."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden, cast(ModuleType, None)))  # importlib's way to say that there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
