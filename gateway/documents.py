"""Read and write Envoy's configuration as parsed YAML documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

Node = dict[str, Any]  # a mapping of a parsed configuration


class _Plain(yaml.SafeDumper):
    """Writes a shared part out in full wherever it is used."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def parsed(path: Path) -> Node:
    """Return the document in `path`."""
    document: Node = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def write(path: Path, document: Node) -> Path:
    """Replace `path` by a rename, which is what Envoy watches for; return it."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    whole.write_text(yaml.dump(document, Dumper=_Plain, sort_keys=False, width=200), encoding="utf-8")
    whole.replace(path)
    return path
