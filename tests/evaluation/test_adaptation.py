"""Adaptation to patches without labels: what changes, to which patches, and where it is refused."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from pcam.benchmark.adaptation import Grid, measure_adaptation, report_adaptation
from pcam.commands.evaluate import main as evaluate
from pcam.commands.predict import main as predict
from pcam.data import PCamDataModule
from pcam.data.inputs import sample_inputs
from pcam.data.stain import STAINS, Staining, StainShift, scale_stains
from pcam.errors import UserError
from pcam.evaluation import adaptation
from pcam.evaluation.adaptation import adapt, sample_batches
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.batch_norm import adapt_batch_norm, first_layers, read_statistics
from pcam.models.inference import EvaluationSettings, InferenceNetwork
from pcam.options import Adaptation
from pcam.run_folder import RunFolder
from pcam.trained import TrainedRun
from tests.data.forms import noise, write_camelyon17
from tests.scripts.test_evaluate import short_run


class SmallNetwork(nn.Module):
    """Batch norm first, so that it sees the patches themselves; then two more layers of it."""

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(channels) for channels in (3, 4, 4)]
        self.layers = nn.Sequential(
            norms[0], nn.Conv2d(3, 4, 9, 4), norms[1], nn.ReLU(), nn.Conv2d(4, 4, 3, 2), norms[2], nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(4, 1)

    def forward(self, patches):
        return self.head(self.layers(patches.float()).mean(dim=(2, 3))).squeeze(1)


def small_run(root: Path, cache_dir: Path, **settings) -> TrainedRun:
    """A run without a folder, with random weights and the statistics of noise."""
    torch.manual_seed(0)
    network = SmallNetwork()
    network.train()(torch.randint(0, 256, (32, 3, 96, 96)))
    data = PCamDataModule(root, batch_size=7, cache_dir=cache_dir)
    folder = RunFolder(cache_dir)
    return TrainedRun(folder, "best", {}, 1, network.eval(), lambda: data, EvaluationSettings(**settings))


@pytest.fixture(scope="module")
def wilds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Camelyon17 with 32 patches of each hospital; nobody may write to it."""
    root = tmp_path_factory.mktemp("camelyon17") / "wilds"
    patches, labels = noise({"train": (80, 80)})["train"]
    write_camelyon17(root, (patches * [0.9, 0.5, 0.8]).astype(np.uint8), labels)  # as if stained by eosin
    return root


@pytest.fixture
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "MIN_PATCHES", 20)
    monkeypatch.setattr("pcam.trained.MIN_PATCHES", 20)


def test_the_first_layers_take_the_statistics_of_the_patches_and_no_other_does() -> None:
    torch.manual_seed(0)
    network = SmallNetwork().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    patches = torch.randint(0, 256, (40, 3, 96, 96), dtype=torch.uint8)
    adapted = adapt_batch_norm(network, patches.split(20), Adaptation("all", "batch_norm", 2, 0.25))
    mean = patches.float().mean(dim=(0, 2, 3))
    variance = torch.stack([batch.float().var(dim=(0, 2, 3)) for batch in patches.split(20)]).mean(dim=0)
    torch.testing.assert_close(adapted.layers[0].running_mean, 0.25 * mean)
    torch.testing.assert_close(adapted.layers[0].running_var, 0.75 + 0.25 * variance)
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"layers.{place}.running_{what}" for place in (0, 2) for what in ("mean", "var")}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not adapted.training


def test_a_shift_of_brightness_and_contrast_is_taken_back() -> None:
    torch.manual_seed(0)
    network = SmallNetwork().eval()
    patches = torch.randint(0, 256, (64, 3, 96, 96)).float()
    shifted = 0.6 * patches + 20
    one_layer = Adaptation("all", "batch_norm", 1)
    expected = adapt_batch_norm(network, [patches], one_layer)(patches)
    assert (network(shifted) - network(patches)).abs().max() > 0.1
    torch.testing.assert_close(adapt_batch_norm(network, [shifted], one_layer)(shifted), expected, rtol=1e-3, atol=1e-4)


def test_each_size_of_a_network_that_enlarges_is_adapted() -> None:
    network = MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[128])
    layers = first_layers(network, 3)
    assert layers[:3] == [module for module in network.features.modules() if isinstance(module, nn.BatchNorm2d)][:3]
    inside = [module for module in network.enlarged.modules() if isinstance(module, nn.BatchNorm2d)]
    assert layers[3:] == inside[:3]
    assert len(first_layers(network, 1000)) == 104
    adapted = adapt_batch_norm(network, [torch.randint(0, 256, (4, 3, 96, 96))], Adaptation("all", "batch_norm", 3))
    assert not torch.equal(read_statistics(first_layers(adapted, 3)[3:]), read_statistics(layers[3:]))


@pytest.mark.parametrize(
    ("network", "chosen", "message"),
    [
        (
            SmallNetwork(),
            Adaptation("all", "batch_norm", 0),
            "Expected to adapt at least 1 layer of batch norm, but found 0",
        ),
        (
            SmallNetwork(),
            Adaptation("all", "batch_norm", 1, 1.5),
            "Expected the weight of an adaptation to be from 0 to 1, but found 1.5",
        ),
        (
            BaselineCNN(),
            Adaptation("all", "batch_norm"),
            "Expected a network with batch norm, whose .* but BaselineCNN has none",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(network: nn.Module, chosen: Adaptation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapt_batch_norm(network, [torch.zeros(4, 3, 96, 96)], chosen)


@pytest.mark.slow  # takes some seconds
@pytest.mark.usefixtures("_small_units")
def test_each_hospital_is_scored_by_a_network_that_is_adapted_to_it(wilds: Path, tmp_path: Path) -> None:
    chosen = Adaptation("hospital", "batch_norm", 2)
    run = small_run(wilds, tmp_path, adaptation=chosen)
    found, store = run.predict("train"), run.data.packed("train")
    assert set(found.hospitals) == {"hospital_0", "hospital_3", "hospital_4"}
    for hospital in set(found.hospitals):
        rows = np.flatnonzero(np.asarray(found.hospitals) == hospital)
        patches = store[rows].patches
        order = np.concatenate(list(sample_batches(len(rows))))
        expected = adapt_batch_norm(run.network, [patches[order]], chosen)(patches).detach()
        np.testing.assert_allclose(found.logits[rows], expected, rtol=1e-4, atol=1e-5)
    as_trained = small_run(wilds, tmp_path).predict("train")
    assert np.abs(found.logits - as_trained.logits).max() > 0.01
    alone = small_run(wilds, tmp_path).adapted_to(store.patches[rows], chosen)  # of the last, in another order
    np.testing.assert_allclose(alone.logits(store.patches[rows]), found.logits[rows], rtol=1e-3, atol=1e-3)


def test_units_with_too_few_patches_are_left_as_they_are_and_said(wilds: Path, tmp_path: Path) -> None:
    run = small_run(wilds, tmp_path, adaptation=Adaptation("slide", "batch_norm", 2))
    with pytest.warns(UserWarning, match=r"at least 256 patches of valid for each slide to adapt to, but 2 have fewer"):
        found = run.predict("valid")
    np.testing.assert_allclose(found.logits, small_run(wilds, tmp_path).predict("valid").logits, rtol=1e-5)
    with pytest.raises(UserError, match="Expected at least 256 patches to adapt to, but found 32; score them"):
        run.adapted_to(run.data.packed("valid").patches, Adaptation("all"))


def test_a_unit_that_the_data_do_not_tell_is_refused(patch_root: Path, cache_dir: Path) -> None:
    run = small_run(patch_root, cache_dir, adaptation=Adaptation("hospital", "batch_norm"))
    with pytest.raises(UserError, match=r"Expected the hospital of each patch, .* adapt to all patches together"):
        run.predict("valid")


@pytest.mark.slow  # trains, evaluates and predicts
@pytest.mark.usefixtures("_small_units")
def test_results_with_adaptation_have_a_folder_of_their_own(
    wilds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = short_run("random_dropout", wilds, tmp_path / "cache", tmp_path / "runs")
    evaluate([str(run), "--adapt", "hospital", "--adapt_by", "both", "--adapt_layers", "4"])
    assert [path.name for path in (run / "evaluation").iterdir()] == ["valid_adapted_hospital_stains_bn_4"]
    record = json.loads((run / "evaluation" / "valid_adapted_hospital_stains_bn_4" / "metrics.json").read_text())
    assert record["classifier"] == "random_dropout/version_0, stains and first 4 bn layers adapted to each hospital"
    images = wilds / "camelyon17_v1.0" / "patches"
    scores = tmp_path / "scores.csv"
    predict([str(run), "--input", str(images), "--output", str(scores), "--adapt", "all"])
    adapted = scores.read_bytes()
    predict([str(run), "--input", str(images), "--output", str(scores)])
    assert adapted != scores.read_bytes()
    assert len(sample_inputs([images], 50)) == 40  # every fourth of 160


def stained(count: int) -> torch.Tensor:
    """Patches of three stains in random amounts, the third in small ones, and some white."""
    amounts = torch.rand(count, 3, 96 * 96, generator=torch.Generator().manual_seed(3))
    amounts[:, 2] /= 10
    densities = torch.tensor(STAINS).T @ (0.2 + amounts)
    densities[:, :, :200] = 0.01
    return (256 * torch.exp(-densities) - 1).view(count, 3, 96, 96)


def test_the_mean_amounts_of_stains_are_those_of_each_pixels_own_equations() -> None:
    patches = stained(4)
    found = Staining.of(iter(patches.split(3)))
    densities = -np.log((patches.double().permute(1, 0, 2, 3).reshape(3, -1).numpy() + 1) / 256)
    tissue = densities[:, (densities > 0.15).all(axis=0)]
    amounts = np.linalg.lstsq(np.array(STAINS).T, tissue)[0]
    assert amounts.shape == (3, 4 * (96 * 96 - 200))
    np.testing.assert_allclose([found.haematoxylin, found.eosin], amounts.mean(axis=1)[:2], atol=1e-4)


def test_another_staining_is_taken_back() -> None:
    patches = stained(4)
    shifted = scale_stains(patches, torch.tensor([[0.7, 1.3, 1.0]]).expand(4, 3))
    network = BaselineCNN().eval()
    adapted = adapt(network, [shifted], Adaptation("all"), Staining.of([patches]))
    assert (network.normalization(patches) - network.normalization(shifted)).abs().max() > 0.1
    tissue = (network.normalization(patches) - adapted.normalization(shifted)).flatten(2)[:, :, 200:]
    assert tissue.abs().max() < 0.02
    assert network.normalization is not adapted.normalization
    assert not adapted.training


def test_stains_need_tissue_and_a_network_that_says_how_it_normalises() -> None:
    reference = Staining(1.0, 0.5)
    with pytest.raises(UserError, match="with haematoxylin and eosin to adapt to, but found 0 pixels of tissue"):
        adapt(BaselineCNN(), [torch.full((4, 3, 96, 96), 250.0)], Adaptation("all"), reference)
    with pytest.raises(UserError, match=r"whose attribute normalization is its first layer.*but SmallNetwork has none"):
        adapt(SmallNetwork(), [stained(2)], Adaptation("all"), reference)


def test_the_staining_of_other_training_patches_is_not_taken_for_that_of_the_run(wilds: Path, tmp_path: Path) -> None:
    run = small_run(wilds, tmp_path)
    found = run.training_staining()
    (tmp_path / "environment.json").write_text(json.dumps({"data_fingerprints": {"train": "another"}}))
    with pytest.raises(UserError, match=r"Expected the training patches of .* but the train split of .* is another"):
        run.training_staining()
    record = {"data_fingerprints": {"train": "another"}, "staining": asdict(found)}
    (tmp_path / "environment.json").write_text(json.dumps(record))
    assert run.training_staining() == found
    (tmp_path / "environment.json").write_text(json.dumps({"staining": {"eosin": "much"}}))
    with pytest.raises(UserError, match="Expected two numbers in staining of "):
        run.training_staining()


def test_the_engine_computes_what_is_adapted() -> None:
    torch.manual_seed(0)
    network = MobileNetV2(weights=None, dropout=0.0).eval()
    patches = stained(8)
    adapted = adapt(network, [patches], Adaptation("all"), Staining(1.0, 0.5))
    classify = InferenceNetwork(adapted)
    with torch.no_grad():
        torch.testing.assert_close(classify(patches), adapted(patches), rtol=1e-3, atol=1e-4)
    assert "OpenVINO" in classify.name or find_spec("openvino") is None


@pytest.mark.slow  # takes some seconds
def test_the_benchmark_weighs_classes_by_their_share(wilds: Path, tmp_path: Path) -> None:
    run = small_run(wilds, tmp_path)
    run.data.stain_shifts = [StainShift(haematoxylin=1.3), StainShift(eosin=0.7)]
    grid = Grid(["batch_norm"], layers=[1, 3], weights=[0.5, 1.0], shares=[0.5, 0.25], sizes=[8, 500])
    readings = measure_adaptation(run, "train", grid, scored=6, seed=0)
    assert len(readings) == 2 + 2 * 2 * 2  # of 500 patches there are too few
    half, quarter = readings[:2]
    assert (half.layers, half.loss_change, quarter.accuracy_change_error) == (0, 0, 0)
    assert half.auroc == quarter.auroc
    assert {reading.size for reading in readings[2:]} == {8}
    report_adaptation("a title", readings, tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["readings"][1]["share"] == 0.25
    with pytest.raises(UserError, match=r"Expected more than 600 patches of each class in .*; lower --scored"):
        measure_adaptation(run, "train", grid, scored=600, seed=0)


def test_the_numbers_of_a_reading_are_those_of_scikit_learn(wilds: Path, tmp_path: Path) -> None:
    run = small_run(wilds, tmp_path)
    (reading,) = measure_adaptation(run, "train", Grid(["batch_norm"], [1], [1.0], [0.2], [1000]), scored=20, seed=0)
    store = run.data.packed("train")
    rng = np.random.default_rng((0, 0))
    rows = np.concatenate([rng.permutation(np.flatnonzero(store.labels == label))[:20] for label in (0, 1)])
    labels, scores = store.labels[rows], run.scores(store.patches[rows])
    weights = np.where(labels == 1, 0.2, 0.8)
    assert reading.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert reading.loss == pytest.approx(log_loss(labels, scores, sample_weight=weights), rel=1e-5)
    assert reading.accuracy == pytest.approx(np.average((scores > 0.5) == labels, weights=weights))
