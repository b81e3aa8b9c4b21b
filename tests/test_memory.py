import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def faults_of_fresh_tensors(prepare: str) -> int:
    """Pages that the system had to give when a process allocates 64 MiB anew 20 times, after as many."""
    script = f"""
import resource, torch
from growbench import memory
{prepare}
for _ in range(20):
    torch.empty(2**24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(2**24).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert faults_of_fresh_tensors("") > 300  # a page each 4 KiB, or, where they are huge, each 2 MiB
    assert faults_of_fresh_tensors("memory.keep_freed()") < 100


def test_a_new_peak_does_not_hold_what_was_freed_before() -> None:
    script = """
import torch
from growbench import memory
memory.keep_freed()
cpu = torch.device("cpu")
memory.reset_peak(cpu)
base = memory.peak(cpu)
torch.empty(2**26).fill_(1)  # 256 MiB
assert memory.peak(cpu) - base > 2**28 * 0.95, memory.peak(cpu) - base
memory.reset_peak(cpu)
assert memory.peak(cpu) - base < 2**26, memory.peak(cpu) - base
"""
    subprocess.run([sys.executable, "-c", script], check=True)
