"""The memory that is left of a machine, or of a group of processes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypermask_fast import memory as memory_left
from hypermask_fast.memory import available_memory


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param(
            {"proc/meminfo": "MemFree: 1 kB\nMemAvailable: 900 kB\n"}, 921600, id="machine"
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 900 kB\n",
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup/a/memory.max": "500000\n",
                "cgroup/a/memory.current": "200000\n",
                "cgroup/a/memory.stat": "anon 1\ninactive_file 50000\n",
                "cgroup/a/b/memory.max": "max\n",
                "cgroup/a/b/memory.current": "100\n",
            },
            350000,
            id="group-v2",
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 900 kB\n",
                "proc/self/cgroup": "4:cpu,memory:/x\n0::/\n",
                "cgroup/memory/memory.limit_in_bytes": "300000\n",
                "cgroup/memory/memory.usage_in_bytes": "400000\n",
            },
            0,
            id="group-v1-full",
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 100 kB\n",
                "proc/self/cgroup": "0::/\n",
                "cgroup/memory.max": "500000\n",
                "cgroup/memory.current": "200000\n",
            },
            102400,
            id="machine-has-less",
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 900 kB\n",
                "proc/self/limits": "Limit                     Soft Limit           Hard Limit\n"
                "Max cpu time              unlimited            unlimited            seconds\n"
                "Max data size             500000               unlimited            bytes\n"
                "Max address space         unlimited            unlimited            bytes\n",
                "proc/self/status": "Name:\tpython\nVmSize:\t    9000 kB\nVmData:\t     100 kB\n",
            },
            397600,
            id="limit-of-the-process",
        ),
    ],
)
def test_host_memory(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    assert memory_left._host_memory(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_available_memory_of_what_is_not_there_is_unknown() -> None:
    assert available_memory("cuda:99") is None
    assert available_memory("mps") is None
