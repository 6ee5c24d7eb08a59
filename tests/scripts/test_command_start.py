"""The commands that open runs answer `--help` and a wrong option at once: nothing that takes seconds is imported."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "pandas", "scipy", "matplotlib", "h5py", "PIL", "pcam.trained", "pcam.evaluation"}

PROGRAM = """
import sys
from pcam.commands.{command} import main
for words in (["--help"], ["run", "--nonsense"]):
    try:
        main(words)
    except SystemExit as ended:
        print(words, ended.code)
print("imported:", sorted(set(sys.modules) & {heavy}))
"""


@pytest.mark.parametrize("command", ["evaluate", "predict", "slide", "explain", "export"])
def test_help_and_a_wrong_option_import_nothing_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(command=command, heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("['--help'] 0\n['run', '--nonsense'] 2\nimported: []\n")
    assert "Traceback" not in done.stderr
