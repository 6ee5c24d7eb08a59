"""The report of the study that is made up."""

import pytest

from pcam.study.plan import Run
from pcam.study.report import write_report
from pcam.study.runner import StudyFolder
from tests.study.made_up import PLAN, make_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Its folder, with its report; nobody may write to it but the same report again."""
    made = StudyFolder(tmp_path_factory.mktemp("study"))
    for seed in PLAN.seeds:
        make_run(made, Run("good", seed), 1.0)
        make_run(made, Run("same", seed), 1.0, seed=1)
    for seed in (1, 2):
        make_run(made, Run("poor", seed), 0.1)
    (made.runs / "absent_seed_1").mkdir(parents=True)
    made.failure(Run("absent", 1)).write_text("Expected weights, but found none.\n")
    write_report(PLAN, made)
    return made
