"""Threads are as many as the CPUs that are free, by affinity, quota and load."""

import os
import time

import pytest

from cloud_hf import openmp_threads
from cloud_hf.openmp_threads import Cpus, measure_cpus, thread_environment


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        (Cpus(2, 2.0, 2.0), {}),
        (Cpus(2, 2.0, 1.8), {}),  # noise
        (Cpus(2, 2.0, 1.0), {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}),
        (Cpus(2, 2.0, 0.0), {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}),
        (Cpus(64, 64.0, 30.2), {"OMP_NUM_THREADS": "30", "OMP_WAIT_POLICY": "PASSIVE"}),
        (Cpus(64, 4.0, 4.0), {"OMP_NUM_THREADS": "4"}),
        (Cpus(64, 2.5, 2.5), {"OMP_NUM_THREADS": "2"}),
        (Cpus(64, 0.5, 0.5), {"OMP_NUM_THREADS": "1"}),
        (Cpus(64, 4.0, 2.9), {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        (Cpus(1, 1.0, 0.0), {}),
    ],
)
def test_threads_by_free_cpus(cpus, expected):
    assert thread_environment({}, cpus) == expected


def test_what_the_user_has_set_holds():
    assert thread_environment({"OMP_NUM_THREADS": "2"}, Cpus(2, 2.0, 0.0)) == {}
    chosen = thread_environment({"OMP_WAIT_POLICY": "ACTIVE"}, Cpus(2, 2.0, 0.0))
    assert chosen == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}


class Machine:
    """A `proc` and `sys` in a folder, whose clock runs on when someone sleeps."""

    def __init__(self, root, cpus=4, busy=()):
        self.root, self.cpus, self.busy, self.hundredths, self.usage = root, cpus, busy, 0, []
        self.write("proc/self/cgroup", "0::/\n")
        self.sleep(0.0)

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def sleep(self, seconds):
        self.hundredths += round(100 * seconds)
        lines = ["cpu  1 2 3 4"]
        for cpu in range(self.cpus):
            user, idle = (self.hundredths, 5) if cpu in self.busy else (7, self.hundredths)
            lines.append(f"cpu{cpu} {user} 0 0 {idle} 0 0 0 0 {user} 0")
        self.write("proc/stat", "\n".join([*lines, "intr 1 2 3"]))
        for path, text in self.usage:
            self.write(path, text(self.hundredths / 100))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    def make(mask, **options):
        machine = Machine(tmp_path, **options)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: mask)
        monkeypatch.setattr(openmp_threads.time, "sleep", machine.sleep)
        monkeypatch.setattr(openmp_threads.time, "monotonic", lambda: machine.hundredths / 100)
        return machine

    return make


def test_busy_cpus_outside_the_mask_do_not_count(machine):
    made = machine({0, 1}, busy=(1, 2, 3))
    assert measure_cpus(root=made.root) == Cpus(2, 2.0, 1.0)


def test_quota_of_cgroup_version_2(machine):
    """Of the group itself or of one above it, less what the group already uses."""
    made = machine({0, 1, 2, 3})
    made.write("proc/self/cgroup", "0::/pod/container\n")
    made.write("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    made.write("sys/fs/cgroup/pod/cpu.max", "200000 100000\n")
    made.usage = [("sys/fs/cgroup/pod/cpu.stat", lambda now: f"usage_usec {int(now * 1e6)}\nuser_usec 7\n")]
    made.sleep(0.0)
    found = measure_cpus(root=made.root)
    assert (found.visible, found.quota, found.free) == (4, 2.0, pytest.approx(1.0))


def test_quota_of_cgroup_version_1_in_a_container(machine):
    """The path is the host's; what is mounted is the container's group."""
    made = machine({0, 1, 2, 3})
    made.write("proc/self/cgroup", "5:memory:/docker/3f\n4:cpu,cpuacct:/docker/3f\n")
    made.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n")
    made.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    made.usage = [("sys/fs/cgroup/cpuacct/cpuacct.usage", lambda now: "12345\n")]
    made.sleep(0.0)
    assert measure_cpus(root=made.root) == Cpus(4, 1.5, 1.5)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone says which CPUs a process may use")
def test_this_machine():
    start = time.monotonic()
    found = measure_cpus(0.05)
    assert time.monotonic() - start < 1
    assert 1 <= found.threads <= found.visible and 0 <= found.free <= found.quota <= found.visible
