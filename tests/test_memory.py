"""What a process keeps of its memory, seen from a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from pcam.memory import keep_freed_memory
if "keep" in sys.argv: keep_freed_memory()
def step():
    first, second, third = (torch.ones(32, 96, 48, 48) for _ in range(3))
for _ in range(10): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*words: str) -> int:
    command = [sys.executable, "-c", PROGRAM, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


@pytest.mark.slow  # imports torch twice
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_tensors_are_taken_again_without_page_faults() -> None:
    assert page_faults("keep") < page_faults() / 4
