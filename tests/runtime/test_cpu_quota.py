from pathlib import Path

import psutil
import pytest

from bitsweep.runtime import environment
from bitsweep.runtime.cpu_quota import cpu_quota


def groups_of(tmp_path: Path, lines: str, **files: str) -> dict[str, Path]:
    (tmp_path / "cgroup").write_text(lines)
    for name, content in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(content)
    return {"groups": tmp_path / "cgroup", "mounted": tmp_path / "mounted"}


def version_1(folder: str, quota: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "50000 50000\n"}, 1.0),
        ("0::/../other\n", {"cpu.max": "70000 100000\n"}, 0.7),
        ("4:memory:/x\n3:cpu,cpuacct:/docker/abc\n", version_1("cpu,cpuacct/docker/abc", "250000"), 2.5),
        ("3:cpu,cpuacct:/docker/abc\n", version_1("cpu,cpuacct", "50000"), 0.5),
        ("3:cpuacct,cpu:/\n0::/\n", version_1("cpu", "50000"), 0.5),
        ("3:cpu:/\n", version_1("cpu", "-1"), None),
        ("3:cpuset:/\n", version_1("cpuset", "50000"), None),
        ("0::/\n", {"cpu.max": "junk"}, None),
        ("", {}, None),
    ],
)
def test_the_least_limit_holds(lines: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(**groups_of(tmp_path, lines, **files)) == quota


def test_nothing_limits_where_there_are_no_groups(tmp_path: Path) -> None:
    assert cpu_quota(groups=tmp_path / "none", mounted=tmp_path) is None


@pytest.mark.parametrize(("quota", "threads"), [(0.5, 1), (1.9, 1), (2.0, 2), (None, 8), (64.0, 8)])
def test_threads_follow_the_quota(quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    assert environment.physical_cores() == threads
    assert environment.describe()["cpu_quota"] == quota
