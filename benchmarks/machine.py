"""What ``/proc`` tells about processes and the machine."""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: str) -> tuple[int, float] | None:
    """
    Return the parent and the CPU seconds of a process.

    None if it does not exist or is a zombie.
    """
    try:
        fields = Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return (
        None if fields[0] in "ZX" else (int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICK)
    )


def family(root: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    parents = {
        int(pid): stat[0] for pid in os.listdir("/proc") if pid.isdigit() and (stat := _stat(pid))
    }
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu(pids: list[int]) -> float:
    """Return the CPU seconds of these processes, in ticks of 10 ms."""
    return sum(stat[1] for pid in pids if (stat := _stat(str(pid))))


def rss(pids: list[int]) -> int:
    """Return the resident memory of these processes, in KiB."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path("/proc", str(pid), "statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGESIZE") // 1024


def busy() -> float:
    """Return the CPU seconds of all CPUs of the machine since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen = fields[:8]
    return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICK


def description() -> str:
    """Describe the machine in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    # A Python that was compiled without profile takes about a tenth more for the same: who compares
    # machines must know.
    plain = (
        ""
        if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
        else " (not an optimized build)"
    )
    python = f"Python {platform.python_version()}{plain}"
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, {python}"
