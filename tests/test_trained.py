"""A run folder as a classifier: what it answers, what it refuses, and that it leaves the process as it was."""

import logging
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pcam.commands.train import main as train
from pcam.data import PCamDataModule
from pcam.errors import ConfigError, UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.run_folder import RunFolder
from pcam.trained import TrainedRun, check_same_patches
from tests.conftest import COUNTS, REPOSITORY, write_patches


@pytest.fixture(scope="module")
def run_path(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MobileNetV2 at two sizes; nobody may write to it."""
    runs_dir = tmp_path_factory.mktemp("runs")
    train([
        "--config", "random_dropout", "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir),
        "--data.batch_size", "8", "--model.network.enlarged_sizes", "[128]", "--trainer.max_steps", "6",
        "--trainer.val_check_interval", "6", "--trainer.log_every_n_steps", "3", "--runs_dir", str(runs_dir),
        "--trainer.enable_progress_bar", "false", "--seed_everything", "7",
    ])  # fmt: skip
    return runs_dir / "random_dropout" / "version_0"


@pytest.fixture(scope="module")
def run(run_path: Path) -> TrainedRun:
    return TrainedRun.load(run_path, device="cpu")


def broken(run_path: Path, place: Path, old: str, new: str) -> Path:
    """Copy a run's config with a change, and its best checkpoint."""
    (place / "checkpoints").mkdir(parents=True)
    (place / "config.yaml").write_text((run_path / "config.yaml").read_text().replace(old, new))
    os.link(run_path / "checkpoints" / "best.ckpt", place / "checkpoints" / "best.ckpt")
    return place


def test_a_run_says_what_it_is(run: TrainedRun, run_path: Path, patch_root: Path) -> None:
    assert run.step == 6
    assert run.config["experiment"] == "random_dropout"
    assert run.folder == RunFolder(run_path)
    assert isinstance(run.network, MobileNetV2)
    assert not run.network.training
    assert run.data.root == patch_root
    assert run.data.seed == 7
    assert run.device == torch.device("cpu")


@pytest.mark.slow  # takes some seconds
def test_any_number_of_patches_in_either_order_has_the_same_logits(run: TrainedRun) -> None:
    patches = run.data.packed("valid").patches
    expected = run.predict("valid").logits
    assert len(expected) == sum(COUNTS["valid"])
    for batch_size in (1, 7, 100):
        np.testing.assert_allclose(run.logits(patches, batch_size=batch_size), expected, rtol=0, atol=1e-6)
    channels_first = torch.from_numpy(patches.copy()).permute(0, 3, 1, 2)
    np.testing.assert_allclose(run.logits(channels_first), expected, rtol=0, atol=1e-6)
    assert run.logits(patches[:0]).shape == (0,)
    scores = run.scores(patches)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected.astype(np.float64))), rtol=1e-5)


@pytest.mark.slow  # takes some seconds
def test_the_logits_are_those_of_the_network_in_evaluation(run: TrainedRun) -> None:
    patches = run.data.packed("valid").patches[:5]
    with torch.inference_mode():
        expected = run.network(torch.from_numpy(patches.copy()).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(run.logits(patches), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # takes some seconds
def test_symmetries_do_not_tell_a_patch_from_its_mirror_image(run: TrainedRun) -> None:
    patches = run.data.packed("valid").patches[:4]
    mirrored = patches[:, :, ::-1]
    assert np.abs(run.logits(patches) - run.logits(mirrored)).max() > 1e-6
    np.testing.assert_allclose(run.logits(patches, tta=True), run.logits(mirrored, tta=True), rtol=0, atol=1e-6)
    whole = run.predict("valid", tta=True).logits
    np.testing.assert_allclose(run.logits(patches, tta=True), whole[:4], rtol=0, atol=1e-6)


@pytest.mark.slow  # takes some seconds
def test_settings_of_loading_hold_until_a_call_says_otherwise(run: TrainedRun, run_path: Path) -> None:
    patches = run.data.packed("valid").patches[:4]
    averaged = TrainedRun.load(run_path, device="cpu", tta=True)
    assert np.array_equal(averaged.logits(patches), run.logits(patches, tta=True))
    assert np.array_equal(averaged.logits(patches, tta=False), run.logits(patches))
    own_size = TrainedRun.load(run_path, device="cpu", enlarged_sizes=[])
    assert np.abs(own_size.logits(patches) - run.logits(patches)).max() > 1e-6
    with pytest.raises(UserError, match=r"but found \[160\]"):
        TrainedRun.load(run_path, enlarged_sizes=[160])


@pytest.mark.slow  # takes some seconds
def test_after_a_change_of_weights_the_logits_are_of_the_new_ones(run_path: Path) -> None:
    run = TrainedRun.load(run_path, device="cpu")
    patches = run.data.packed("valid").patches[:3]
    before = run.logits(patches)
    with torch.no_grad():
        run.network.head[1].bias += 1
    np.testing.assert_allclose(run.logits(patches), before + 1, rtol=0, atol=1e-5)


@pytest.mark.slow  # takes some seconds
def test_batch_norm_can_be_estimated_again(run: TrainedRun, run_path: Path) -> None:
    patches = run.data.packed("valid").patches[:4]
    again = TrainedRun.load(run_path, device="cpu", reestimate_bn=True)
    assert again.settings.suffix == "_bn"
    assert np.abs(again.logits(patches) - run.logits(patches)).max() > 1e-6
    loaded = TrainedRun.load(run_path, device="cpu")
    loaded.logits(patches)
    loaded.reestimate_batch_norm()
    assert np.array_equal(loaded.logits(patches), again.logits(patches))


@pytest.mark.slow  # takes some seconds
def test_opening_and_using_a_run_changes_nothing_of_the_process(run_path: Path) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def state() -> list[object]:  # without Python's own random numbers, which beartype draws here to sample containers
        return [
            torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),  # noqa: NPY002
            list(warnings.filters), list(logger.filters), signal.getsignal(signal.SIGTERM), dict(os.environ),
            torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd(),
        ]  # fmt: skip

    before = state()
    run = TrainedRun.load(run_path, reestimate_bn=True, tta=True)
    run.predict("valid")
    assert state() == before


@pytest.mark.parametrize(
    ("patches", "found"),
    [
        (np.zeros((2, 96, 96, 3), np.float32), "float32 of shape"),
        (np.zeros((2, 96, 96), np.uint8), r"uint8 of shape \(2, 96, 96\)"),
        (torch.zeros(2, 4, 96, 96, dtype=torch.uint8), r"of shape \(2, 4, 96, 96\)"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"uint8 of shape \(2, 64, 64, 3\)"),
        (torch.zeros(2, 3, 96, 64, dtype=torch.uint8), r"of shape \(2, 3, 96, 64\)"),
    ],
)
def test_what_are_no_patches_is_refused(patches: np.ndarray, found: str, run: TrainedRun) -> None:
    with pytest.raises(ValueError, match=rf"Expected patches as uint8 of shape .* but found .*{found}"):
        run.logits(patches)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dropout: 0.5", "dropout: many", "an option that cannot be used .*dropout"),
        ("pcam.models.MobileNetV2", "pcam.models.Nothing", "an option that cannot be used .*Nothing"),
        ("model:", "modell:", "with the sections model and data"),
        ("batch_size: 8", "batch_size: 0", "batch_size to be at least 1"),
        ("experiment:", "{", "cannot be read"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(
    old: str, new: str, expected: str, run_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        _ = TrainedRun.load(broken(run_path, tmp_path / "run", old, new)).data


def test_a_checkpoint_of_another_network_is_refused(run_path: Path, tmp_path: Path) -> None:
    place = broken(run_path, tmp_path / "run", "enlarged_sizes:\n      - 128", "enlarged_sizes: []")
    with pytest.raises(UserError, match=r"to fit the network in .* \(MobileNetV2\), but its weights are of another"):
        TrainedRun.load(place)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected a run folder with a config\.yaml"):
        TrainedRun.load(tmp_path)
    with pytest.raises(UserError, match=r"Expected a run folder with a config\.yaml"):
        TrainedRun.load(str(tmp_path / "nowhere"))


@pytest.mark.slow  # takes some seconds
def test_a_run_without_a_config_takes_a_network_and_data_of_ones_own(
    run_path: Path, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    os.link(run_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "best.ckpt")
    network = MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[128])
    data = PCamDataModule(patch_root, cache_dir=cache_dir)
    run = TrainedRun.load(tmp_path, device="cpu", network=network, data=data)
    patches = data.packed("valid").patches[:4]
    expected = TrainedRun.load(run_path, device="cpu").logits(patches)
    assert np.array_equal(run.logits(patches), expected)
    with pytest.raises(UserError, match=r"\(BaselineCNN\), but its weights are of another network"):
        TrainedRun.load(tmp_path, network=BaselineCNN(), data=data)


def test_another_root_is_taken_and_runs_on_other_patches_are_not_compared(run_path: Path, tmp_path: Path) -> None:
    write_patches(tmp_path / "other", COUNTS, seed=5)
    runs = [TrainedRun.load(run_path), TrainedRun.load(run_path, root=tmp_path / "other")]
    assert runs[1].data.root == tmp_path / "other"
    check_same_patches(runs[:1] * 2, ["valid"])
    with pytest.raises(UserError, match="Expected runs on the same patches, but the valid split of"):
        check_same_patches(runs, ["valid"])


def test_a_config_error_is_a_user_error_with_a_code_of_its_own(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        TrainedRun.load(broken(run_path, tmp_path / "run", "dropout: 0.5", "dropout: many"))


def test_a_saved_config_has_every_option(run_path: Path) -> None:
    config = yaml.safe_load((run_path / "config.yaml").read_text())
    shipped = yaml.safe_load((REPOSITORY / "configs" / "random_dropout.yaml").read_text())
    assert set(shipped) <= set(config)
    assert config["data"]["root"] != shipped["data"]["root"]
