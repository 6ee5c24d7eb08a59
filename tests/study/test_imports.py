"""A study's command line is read without what takes seconds to import."""

import subprocess
import sys

HEAVY = ("torch", "lightning", "pandas", "scipy", "numpy", "matplotlib", "tensorboard")


def test_the_command_and_the_plan_import_nothing_that_takes_time() -> None:
    program = f"import sys, pcam.commands.study; print([name for name in {HEAVY} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
