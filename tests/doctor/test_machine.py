"""What the system gives: limits of containers, threads, files, disk, ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dsvid.doctor import machine

ROOT = Path(__file__).resolve().parents[2]


def test_limits_of_a_container(tmp_path: Path) -> None:
    assert machine.memory_limit(tmp_path) == (None, 0) and machine.cpu_share(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.memory_limit(tmp_path) == (None, 0) and machine.cpu_share(tmp_path) == 1.5
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert machine.memory_limit(tmp_path) == (8 << 30, 1024)


def test_threads_files_port_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, level in (("2000", "less"), ("many", "less"), ("1", "ok")):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert list(machine.cores())[1].level == level, value
    monkeypatch.setattr(machine, "FEW_FILES", 1 << 40)
    (files,) = machine.open_files()
    assert files.level == "less" and "ulimit -n" in files.cure
    monkeypatch.setattr(machine, "LITTLE_DISK", 1 << 60)
    (disk,) = machine.disk()
    assert disk.level == "less" and "--out" in disk.cure
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(machine, "PORT", taken.getsockname()[1])
        (port,) = machine.ports()
        assert port.level == "less" and "--master_port" in port.cure


def test_a_check_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(machine, "memory", memory)
    (found,) = [each for each in machine.look_around() if each.name == "memory"]
    assert found.level == "unknown" and "not checked" in found.value
