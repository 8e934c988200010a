"""Choose the number of OpenMP threads (which torch uses on a CPU) from the number of free CPUs."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


# Maximum load of other processes, in CPUs, that counts as noise: daemons, or a previous process that is still exiting
_NOISE = 0.3


@dataclass(frozen=True)
class Cpus:
    """Numbers of CPUs available to this process, with `free` ≤ `quota` ≤ `visible`."""

    visible: int  # size of the affinity mask, which is the number of threads that OpenMP starts by default
    quota: float  # how many its control group (for example, of a container) lets it use at a time
    free: float  # how many are not in use by other processes

    @property
    def is_shared(self) -> bool:
        """Return whether other processes are also computing."""
        return self.free < self.quota - _NOISE

    @property
    def threads(self) -> int:
        """Return the number of threads that can each have a CPU to themselves, but at least 1."""
        return max(1, math.floor(self.free + _NOISE if self.is_shared else self.quota))


def thread_environment(environment: Mapping[str, str] = os.environ, cpus: Cpus | None = None) -> dict[str, str]:
    """
    Return the environment variables to start a compute-heavy process with. OpenMP reads them once, when torch is imported.

    Variables that `environment` already sets take precedence. The result is empty if `OMP_NUM_THREADS` is set, and on an idle machine
    without a quota, where OpenMP's own defaults are best. OpenMP threads wait for each other by spinning. This is fastest while each
    thread has a CPU to itself, but several times slower than a single thread once another process uses one of those CPUs.
    """
    if "OMP_NUM_THREADS" in environment or not hasattr(os, "sched_getaffinity"):  # only Linux has this function
        return {}
    cpus = cpus or measure_cpus()
    if cpus.threads == cpus.visible:
        return {}
    chosen = {"OMP_NUM_THREADS": str(cpus.threads)}
    if cpus.is_shared:  # the load may grow later, and threads then lose less time if they sleep while waiting
        chosen["OMP_WAIT_POLICY"] = environment.get("OMP_WAIT_POLICY", "PASSIVE")
    return chosen


def measure_cpus(seconds: float = 0.3, root: Path = Path("/")) -> Cpus:
    """
    Read this process's CPU limits, and measure the load of other processes for `seconds`. The kernel counts CPU time in steps of 0.01 s.
    `root` is the folder that contains `proc` and `sys`.
    """
    mask = os.sched_getaffinity(0)
    groups = list(_limited_groups(root))
    before, used_before, start = _ticks(root), [_used_seconds(usage) for _, usage in groups], time.monotonic()
    time.sleep(seconds)
    after, elapsed = _ticks(root), time.monotonic() - start
    quota = min([float(len(mask)), *(quota for quota, _ in groups)])
    free = [sum(_idle_share(before[cpu], after[cpu]) for cpu in mask if cpu in before and cpu in after)]
    for (group_quota, usage), used in zip(groups, used_before, strict=True):
        free.append(group_quota - (_used_seconds(usage) - used) / elapsed)
    return Cpus(len(mask), quota, max(0.0, min(quota, *free)))


def _ticks(root: Path) -> dict[int, tuple[int, int]]:
    """Return the idle and total time of each CPU since the machine started."""
    ticks = {}
    for line in (root / "proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user, nice, system, idle, iowait, irq, softirq, steal; the guest times that follow are already included in user
            times = [int(value) for value in values[:8]]
            ticks[int(name[3:])] = times[3] + times[4], sum(times)
    return ticks


def _idle_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total else 1.0


def _limited_groups(root: Path) -> Iterator[tuple[float, Path]]:
    """For this process's control groups and their ancestors, yield the quota (in CPUs) and the usage file; skip groups without a quota."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # version 2 has a single tree, without controller names
        accounts = mount if not controllers else root / "sys/fs/cgroup/cpuacct"
        parts = Path(path).parts[1:]
        # In a container, this path may be the group's path on the host, although the group itself is mounted at the root
        for depth in range(len(parts), -1, -1):
            group = mount.joinpath(*parts[:depth])
            usage = accounts.joinpath(*parts[:depth]) / ("cpuacct.usage" if controllers else "cpu.stat")
            quota = _quota(group)
            if quota is not None and usage.is_file():
                yield quota, usage


def _quota(group: Path) -> float | None:
    if (group / "cpu.max").is_file():  # version 2
        limit, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu.cfs_quota_us").is_file():  # version 1
        limit, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    else:
        return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def _used_seconds(usage: Path) -> float:
    text = usage.read_text().split()
    return int(text[1]) / 1e6 if usage.name == "cpu.stat" else int(text[0]) / 1e9
