"""The folders of the tests: files of equal names (`data/test_shards.py`, `weights/test_shards.py`) need packages."""

from pathlib import Path

TESTS = Path(__file__).parent


def test_every_folder_of_tests_is_a_package():
    folders = sorted({path.parent for path in TESTS.rglob("test_*.py")})
    assert len(folders) > 10
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
