"""What `--resume` may change of a run: what is applied is taken, anything else is refused."""

from collections.abc import Mapping
from typing import Any, Final

from pcam.errors import ConfigError, UserError
from pcam.run_folder import RunFolder
from pcam.yaml_files import flatten

APPLIED: Final = frozenset(
    {
        "allow_other_data", "checkpoint_every_seconds", "compile", "data.cache_dir", "data.num_workers", "data.root",
        "resume", "resume_from", "trainer.accelerator", "trainer.benchmark", "trainer.callbacks",
        "trainer.detect_anomaly", "trainer.deterministic", "trainer.devices", "trainer.enable_model_summary",
        "trainer.enable_progress_bar", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time",
        "trainer.num_nodes", "trainer.num_sanity_val_steps", "trainer.plugins", "trainer.profiler", "trainer.strategy",
    }
)  # fmt: skip
"""Options that a resumed training goes by: how long it takes, what it runs on, and where its data lie."""


def check_changes(before: Mapping[str, Any], after: Mapping[str, Any], run: RunFolder) -> None:
    """Refuse an option beside `--resume` that a checkpoint decides, and that would be recorded but not applied.

    Args:
        before: What the run's config says.
        after: The same with the command line.
        run: The run.

    Raises:
        ConfigError: If they differ in what cannot change within a run.
    """
    old, new = flatten(before), flatten(after)
    for key in [*new, *(old.keys() - new.keys())]:
        applied = any(key == name or key.startswith(f"{name}.") for name in APPLIED)
        if not applied and old.get(key) != new.get(key):
            raise ConfigError(
                f"Expected {key} to stay {old.get(key)}, as {run.path} was trained with it and its checkpoint goes by "
                f"it, but found {new.get(key)} on the command line; leave it out, or train a new run."
            )


def check_data(run: RunFolder, found: Mapping[str, str], *, allow_other: bool) -> None:
    """Refuse to resume a run on other patches than those that it was trained on.

    Args:
        run: The run.
        found: Fingerprint of each split that training reads now.
        allow_other: Whether other patches are meant.

    Raises:
        UserError: If a split differs.
    """
    recorded = run.read_environment().get("data_fingerprints") or {}
    for split, fingerprint in found.items():
        if recorded.get(split, fingerprint) != fingerprint and not allow_other:
            raise UserError(
                f"Expected the {split} split that {run.path} was trained with (fingerprint {recorded[split][:12]}), "
                f"but found another (fingerprint {fingerprint[:12]}), on which its metrics cannot be compared with "
                f"those before; bring the files back, or say --allow_other_data if this is meant."
            )
