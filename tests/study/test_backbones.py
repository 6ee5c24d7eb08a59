"""A study with probes among its arms: its plan, its command lines and its figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pcam.errors import UserError
from pcam.study.plan import Arm, Run
from pcam.study.report import write_report
from pcam.study.runner import Conditions, Job, StudyFolder, train_command
from tests.study.made_up import PLAN, make_run

PROBE = Arm(
    "poor network",
    overrides={"model.network": "pcam.models.TimmNetwork", "model.network.weights": "w.pth", "few_shot": 3},
    command="probe",
)
WITH_PROBE = replace(PLAN, arms={**PLAN.arms, "poor": PROBE})


def test_a_probe_has_no_config_and_a_training_has_one() -> None:
    for arm in (Arm("a probe", Path("best"), command="probe"), Arm("a training")):
        with pytest.raises(UserError, match="Expected a config of the arm 'poor' if it is trained, and none"):
            replace(PLAN, arms={**PLAN.arms, "poor": arm})


def test_a_probe_is_run_by_its_own_options_and_weights(tmp_path: Path) -> None:
    conditions = Conditions(Path("patches"), Path("weights_of_mobilenet.pth"))
    command = train_command(Job(WITH_PROBE, Run("poor", 2), StudyFolder(tmp_path), conditions))
    assert command[1:4] == ["-m", "pcam", "probe"]
    words = command[4:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--seeds"] == "1"
    assert options["--seed_everything"] == "2"
    assert options["--experiment"] == "poor_seed_2"
    assert options["--model.network.weights"] == "w.pth"
    assert not {"--config", "--trainer.enable_progress_bar"} & set(options)
    assert words.index("--model.network") < words.index("--model.network.weights")


@pytest.mark.slow  # takes some seconds
def test_the_report_shows_what_backbones_cost_and_learn_from_few_patches(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for arm, signal in {"good": 1.0, "same": 1.0, "poor": 0.4}.items():
        run = Run(arm, 1)
        make_run(folder, run, signal)
        path = folder.results.path / run.name / "record.json"
        facts = {
            "digest": WITH_PROBE.arms[arm].digest(),
            "parameters": 2_000_000 * len(arm),
            "seconds_per_patch": 0.002 * signal,
        }
        if arm != "good":
            curve = [{"shots": shots, "auroc": 0.6 + 0.1 * place} for place, shots in enumerate((5, 50, 500))]
            facts["few_shot"] = [
                {**row, "auroc_low": row["auroc"] - 0.05, "auroc_high": row["auroc"] + 0.05} for row in curve
            ]
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    pages = write_report(WITH_PROBE, folder)
    text = pages[1].read_text()
    for name in ("auroc_by_parameters", "auroc_by_seconds_per_patch", "few_shot"):
        assert (folder.report / "figures" / f"{name}.png").stat().st_size > 5000
        assert f"figures/{name}.svg" in text
    assert (folder.report / "figures" / "loss_good.png").exists()
    assert not (folder.report / "figures" / "loss_poor.png").exists()
