"""Migrations are files with numbers."""

from pathlib import Path

import pytest

from services.chassis.migrate import FOLDERS, MigrationError, migrations


@pytest.mark.parametrize("names", [("0001_one.sql", "0001_other.sql"), ("1_one.sql",)])
def test_every_migration_has_a_number_of_its_own(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that were written side by side would fail in the middle of a deployment."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    monkeypatch.setitem(FOLDERS, "token", tmp_path)

    with pytest.raises(MigrationError):
        migrations("token")


@pytest.mark.parametrize("schema", FOLDERS)
def test_numbers_have_no_holes(schema: str) -> None:
    assert [one.version for one in migrations(schema)] == list(range(1, len(migrations(schema)) + 1))
