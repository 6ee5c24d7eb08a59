"""What is told on the way: once, by the first of several processes, where the process wants its logs."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

SAY = "from pcam.messages import inform; inform('Packing.'); import sys; print('lightning' in sys.modules)"


@pytest.mark.parametrize(
    ("environment", "before", "said"),
    [
        ({}, "", "Packing.\n"),
        ({"RANK": "0"}, "", "Packing.\n"),
        ({"RANK": "1"}, "", ""),
        ({"SLURM_PROCID": "1"}, "", ""),
        ({"RANK": "0", "SLURM_PROCID": "1"}, "", "Packing.\n"),
        ({}, "import logging; logging.basicConfig(level='INFO', format='log: %(message)s'); ", "log: Packing.\n"),
    ],
)
def test_the_first_process_tells_it_where_logs_go(environment: dict[str, str], before: str, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", before + SAY], capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env=os.environ | environment,
    )  # fmt: skip
    assert ended.stderr == said
    assert ended.stdout == "False\n"
