"""What a process keeps of its memory, seen from a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from pcam.memory import keep_freed_memory
from pcam.models import MobileNetV2
if "keep" in sys.argv:
    keep_freed_memory()
network = MobileNetV2(weights=None, dropout=0.5)
def page_faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(torch.zeros(32, 3, 96, 96, dtype=torch.uint8)).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
page_faults(5)
print(page_faults(5))
"""


def page_faults(*words: str) -> int:
    """Page faults in five steps of training."""
    command = [sys.executable, "-c", PROGRAM, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_of_training_takes_again_what_the_last_one_freed() -> None:
    assert page_faults("keep") < page_faults() / 2
