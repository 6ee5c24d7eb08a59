"""Private parts of Lightning that the project uses: a version that changes one of them fails here, by its name.

They are used in pcam/training/checkpoints.py and pcam/training/progress.py, and Lightning is pinned below its next
version in pyproject.toml for their sake. When one of these tests fails, read what Lightning does now before the pin is
raised.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (ModelCheckpoint._save_topk_checkpoint, ["self", "trainer", "monitor_candidates"]),
        (ModelCheckpoint._monitor_candidates, ["self", "trainer"]),
        (ModelCheckpoint._save_checkpoint, ["self", "trainer", "filepath"]),
        (RichProgressBar._get_train_description, ["self", "current_epoch"]),
        (_TrainingEpochLoop._should_check_val_fx, ["self", "data_fetcher"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_private_method_takes_what_it_took(method: Callable[..., Any], parameters: list[str]) -> None:
    assert list(inspect.signature(method).parameters) == parameters


def test_the_private_attributes_are_there() -> None:
    checkpoint = ModelCheckpoint()
    assert checkpoint._last_global_step_saved == 0
    loop = Trainer(logger=False, enable_checkpointing=False).fit_loop
    assert loop._data_fetcher is None
    assert isinstance(loop.epoch_loop, _TrainingEpochLoop)


def test_a_checkpoint_is_loaded_with_the_keys_that_moving_it_changes() -> None:
    assert {"best_model_path", "kth_best_model_path", "best_k_models", "dirpath"} <= set(ModelCheckpoint().state_dict())
