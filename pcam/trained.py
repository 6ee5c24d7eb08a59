"""`TrainedRun`: a run folder as a classifier. This is the one way from a run folder to logits."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import expit
from torch import Tensor, nn

from pcam.atomic import expanded
from pcam.data.layouts.tables import listed
from pcam.data.packed import PackedSplit
from pcam.data.stain import Staining, shift_stains
from pcam.device import find_device
from pcam.errors import UserError
from pcam.evaluation.adaptation import MAX_PATCHES, MIN_PATCHES, adapt, adapted_logits, sample_batches
from pcam.evaluation.explain import Attributions, explain, explain_mean_score
from pcam.evaluation.model_card import chosen_on_valid
from pcam.evaluation.predictions import Predictions, check_finite
from pcam.messages import rank_zero_warn
from pcam.models.batch_norm import REESTIMATION_PATCHES, reestimate_batch_norm
from pcam.models.inference import EvaluationSettings, InferenceNetwork
from pcam.options import Adaptation, CheckpointName, Precision, SplitName
from pcam.patches import PATCH_SHAPE, PatchArray, Patches
from pcam.rebuilding import build_data, build_network, load_weights, read_config
from pcam.run_folder import RunFolder

if TYPE_CHECKING:
    from pcam.data import PCamDataModule

BATCH_SIZE: Final = 64
"""Patches that are classified at once, unless said otherwise."""


class TrainedRun:
    """The classifier of a run folder, and the data that it was trained on.

    Opening and using one changes nothing of the process: no random state, no warning filter, no signal handler. Make
    one with `TrainedRun.load`.

    Attributes:
        folder: The run folder.
        checkpoint: Which of its checkpoints the weights are from.
        config: What `config.yaml` says: every option of the training.
        step: Number of optimizer steps behind the weights.
        network: Patches in (shape (batch, 3, 96, 96), values 0..255), logits out, in evaluation mode, on `device`.
        settings: How scores are computed unless a call says otherwise.
        device: Where the network computes.
    """

    def __init__(
        self,
        folder: RunFolder,
        checkpoint: CheckpointName,
        config: Mapping[str, Any],
        step: int,
        network: nn.Module,
        find_data: "Callable[[], PCamDataModule]",
        settings: EvaluationSettings,
    ) -> None:
        self.folder = folder
        self.checkpoint: CheckpointName = checkpoint
        self.config = config
        self.step = step
        self.network = network
        self._find_data = find_data
        self.settings = settings
        self._prepared: tuple[tuple[Any, ...], InferenceNetwork] | None = None

    @classmethod
    def load(
        cls,
        path: RunFolder | Path | str,
        checkpoint: CheckpointName = "best",
        *,
        root: Path | str | None = None,
        tta: bool = False,
        precision: Precision = "32-true",
        reestimate_bn: bool = False,
        enlarged_sizes: Sequence[int] | None = None,
        adaptation: Adaptation | None = None,
        device: str | torch.device = "auto",
        network: nn.Module | None = None,
        data: "PCamDataModule | None" = None,
    ) -> "TrainedRun":
        """Open a run folder.

        Args:
            path: The run folder, such as `lightning_logs/best/version_0`; or a published run: the name of one that
                comes with the package, such as "best", or "hf://owner/name" on the Hugging Face hub; or what
                `RunFolder.find` found of either.
            checkpoint: "best" by the experiment's `monitor`, "last", or "previous", the one before the last.
            root: Folder with the data; null is the one that the run was trained on.
            tta: Whether each score is the mean over the eight symmetries of the square (test-time augmentation).
            precision: "32-true", or "bf16-mixed": convolutions in bfloat16, which is meant for GPUs and moves
                scores in their third digit.
            reestimate_bn: Whether to estimate batch norm's running statistics again, on 10,000 training patches.
            enlarged_sizes: The sizes, besides 96 pixels, that patches are evaluated at: some of those that the network
                was trained with; null is all of them.
            adaptation: How `predict` adapts the network to the patches of a split, without their labels; null leaves it
                as it was trained. Patches that are no split: `adapted_to`.
            device: "auto" (an accelerator if PyTorch finds one, else the CPU), or PyTorch's name of a device.
            network: The network that the weights are loaded into; null builds the one that the config names. For a
                run that was trained in a notebook, whose folder has no config.
            data: The data; null is what the config names.

        Returns:
            The classifier, ready to use.

        Raises:
            ConfigError: If the run's config is wrong.
            UserError: If there is no run folder or no such checkpoint, or the checkpoint does not fit the network.
        """
        if isinstance(path, RunFolder):
            folder = path
        else:
            is_whole = network is None or data is None  # else a run from a notebook, whose folder has no config
            folder = RunFolder.find(Path(path)) if is_whole else RunFolder(Path(path))
        weights = folder.checkpoint(checkpoint)
        config = read_config(folder) if folder.config.is_file() else {}
        network = build_network(config, folder.config) if network is None else network
        elsewhere = None if root is None else expanded(root, "root")

        def find_data() -> "PCamDataModule":
            found = build_data(config, folder.config) if data is None else data
            found.root = found.root if elsewhere is None else elsewhere
            return found

        step = load_weights(network, weights, f"the network in {folder.config}")
        network.to(find_device(device)).eval()
        settings = EvaluationSettings(tta, precision, reestimate_bn, enlarged_sizes, adaptation)
        if enlarged_sizes is not None:
            settings.network(network)  # refuses sizes that the network does not have
        run = cls(folder, checkpoint, config, step, network, find_data, settings)
        if reestimate_bn:
            run.reestimate_batch_norm()
        return run

    @cached_property
    def data(self) -> "PCamDataModule":
        """The data, at the root that the run was trained on or that `load` was given.

        Found when they are first asked for, which imports Lightning: patches from elsewhere need neither.

        Raises:
            ConfigError: If what the run's config says of them is wrong.
        """
        return self._find_data()

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(itertools.chain(self.network.parameters(), self.network.buffers())).device

    @property
    def engine(self) -> str:
        """What computes logits, with its version, such as "OpenVINO 2026.4.1"; PyTorch where that is not installed."""
        return self._classifier(None).name

    def recorded_choices(self, tta: bool | None = None) -> dict[str, Any] | None:
        """Find what evaluating the run on its valid split with these settings has chosen.

        Args:
            tta: Whether scores are averaged over the eight symmetries of the square; null does as the run was loaded.

        Returns:
            The `temperature`, the `thresholds` by name, and the `metrics` on valid; None if it was not evaluated so.

        Raises:
            UserError: If what was written is damaged.
        """
        settings = self.settings if tta is None else replace(self.settings, tta=tta)
        fingerprint = self.folder.read_environment().get("data_fingerprints", {}).get("valid", "")
        return chosen_on_valid(self.folder, settings, self.checkpoint, self.step, fingerprint)

    def reestimate_batch_norm(self) -> None:
        """Estimate batch norm's running statistics again, on un-augmented training patches; changes the network."""
        reestimate_batch_norm(self.network, self.data.training_patches(REESTIMATION_PATCHES, self.device))
        self._prepared = None

    def training_staining(self) -> Staining:
        """Find the staining of the training patches: what a published run says of it, else that of 1,024 of them.

        Raises:
            UserError: If the run does not say it, and its data cannot be read or are not those that it was trained on.
        """
        environment = self.folder.read_environment()
        recorded = environment.get("staining")
        if recorded is not None:
            try:
                return Staining(float(recorded["haematoxylin"]), float(recorded["eosin"]))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"Expected two numbers in staining of {self.folder.path}/environment.json, but found {recorded}; "
                    f"bring the file back, or export the run again."
                ) from error
        trained_on = environment.get("data_fingerprints", {}).get("train")
        if trained_on is not None and self.data.packed("train").fingerprint != trained_on:
            raise UserError(
                f"Expected the training patches of {self.folder.path}, to whose staining others are brought, but the "
                f"train split of {self.data.root} is another; where those patches are, pcam export --format hub makes "
                f"a folder that knows their staining; or take --adapt_by batch_norm."
            )
        return Staining.of(self.data.training_patches(MAX_PATCHES, torch.device("cpu")))

    def adapted_to(self, patches: NDArray[np.uint8] | Tensor, adaptation: Adaptation) -> "TrainedRun":
        """Make a classifier that is adapted to patches from elsewhere, without their labels.

        Args:
            patches: As for `logits`: all of one slide or hospital, or some of them drawn at random. Of more than 1,024,
                as many are used.
            adaptation: How the network is adapted. Whatever its unit, the patches are one.

        Returns:
            The classifier; this one stays as it is.

        Raises:
            UserError: If there are too few patches, or they or the network cannot be used for the method.
        """
        _check_patches(patches)
        if len(patches) < MIN_PATCHES:
            raise UserError(
                f"Expected at least {MIN_PATCHES} patches to adapt to, but found {len(patches):,}; score them without "
                f"adaptation."
            )
        batches = (self._on_device(patches[rows]) for rows in sample_batches(len(patches)))
        network = adapt(self.network, batches, adaptation, self._reference(adaptation))
        return TrainedRun(
            self.folder, self.checkpoint, self.config, self.step, network, lambda: self.data, self.settings
        )

    def logits(
        self, patches: NDArray[np.uint8] | Tensor, *, tta: bool | None = None, batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Classify patches.

        Args:
            patches: Any number of patches, uint8, values 0..255: shape (count, 96, 96, 3), as image files are decoded,
                or (count, 3, 96, 96).
            tta: Whether to average over the eight symmetries of the square; null does as the run was loaded.
            batch_size: Number of patches that are classified at once.

        Returns:
            Log-odds of tumour in the centre of each patch, shape (count,).

        Raises:
            ValueError: If `patches` has another type or shape.
            UserError: If a logit is not finite.
        """
        _check_patches(patches)
        classify = self._classifier(tta)
        starts = range(0, len(patches), batch_size)
        with torch.inference_mode():
            found = [classify(self._on_device(patches[start : start + batch_size])).cpu() for start in starts]
        logits: NDArray[np.float32] = torch.cat(found).numpy() if found else np.empty(0, np.float32)
        check_finite(logits, str(self.folder.path))
        return logits

    def scores(
        self, patches: NDArray[np.uint8] | Tensor, *, tta: bool | None = None, batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float64]:
        """Score patches: the sigmoid of their logits.

        Args:
            patches: As for `logits`.
            tta: As for `logits`.
            batch_size: As for `logits`.

        Returns:
            Probability of tumour in the centre of each patch, 0..1, shape (count,), in float64: in float32 all logits
            above 17 would have the score 1.
        """
        scores: NDArray[np.float64] = expit(self.logits(patches, tta=tta, batch_size=batch_size).astype(np.float64))
        return scores

    def attributions(self, patches: PatchArray) -> tuple[Attributions, NDArray[np.float32]]:
        """Explain where in patches the network finds evidence for and against tumour.

        Args:
            patches: Shape (count, 96, 96, 3), values 0..255.

        Returns:
            The attributions by HiResCAM, on the grid of the network's features, above 0 for tumour and below 0 against
            it; and the logits, shape (count,).

        Raises:
            UserError: If the network has no convolutional features, or a logit is not finite.
        """
        network = replace(self.settings, tta=False).network(self.network)
        explain_batch = explain_mean_score if self.settings.tta else explain
        attributions, logits = explain_batch(network, torch.from_numpy(patches).to(self.device).permute(0, 3, 1, 2))
        found: NDArray[np.float32] = logits.float().cpu().numpy()
        check_finite(found, str(self.folder.path))
        return attributions.cpu(), found

    def predict(
        self, split: SplitName, *, tta: bool | None = None, shifted: bool = False, progress: bool = False
    ) -> Predictions:
        """Classify every patch of a split once.

        Args:
            split: "train", "valid" or "test"; never augmented.
            tta: Whether to average over the eight symmetries of the square; null does as the run was loaded.
            shifted: Whether patches have the staining of the data's `stain_shifts`.
            progress: Whether to show a progress bar.

        Returns:
            The predictions, in the order of the packed store.

        Raises:
            UserError: If the data cannot be read, or a logit is not finite.
        """
        store, loader = self.data.packed(split), self.data.loader(split, shifted=shifted)
        if self.settings.adaptation is not None:
            logits = self._adapted_logits(store, split, self.settings.adaptation, tta, shifted)
        else:
            classify = self._classifier(tta)
            batches = track(loader, f"Classifying {split}", len(loader)) if progress else loader
            with torch.inference_mode():
                found = [classify(batch.patches.to(self.device)).cpu() for batch in batches]
            logits = torch.cat(found).numpy()
        check_finite(logits, f"{self.folder.path} on {split}")
        origins = {f"{origin}s": names for origin, names in store.origins().items()}
        return Predictions(store.ids(), store.labels, logits, store.pixel_hashes(), **origins)

    def _adapted_logits(
        self, store: PackedSplit, split: SplitName, adaptation: Adaptation, tta: bool | None, shifted: bool
    ) -> NDArray[np.float32]:
        settings = self.settings if tta is None else replace(self.settings, tta=tta)
        logits, unadapted = adapted_logits(
            self.network,
            store,
            adaptation,
            self._reference(adaptation),
            lambda network: InferenceNetwork(settings.network(network), settings.precision),
            change=partial(shift_stains, shifts=self.data.stain_shifts) if shifted else None,
            device=self.device,
            batch_size=self.data.batch_size,
        )
        if unadapted:
            rank_zero_warn(
                f"Expected at least {MIN_PATCHES} patches of {split} for each {adaptation.unit} to adapt to, but "
                f"{len(unadapted):,} have fewer or are not known ({listed(unadapted)}); they are scored as trained."
            )
        return logits.numpy()

    def _reference(self, adaptation: Adaptation) -> Staining | None:
        """The staining of the training patches, if an adaptation needs it."""
        return None if adaptation.method == "batch_norm" else self.training_staining()

    def _on_device(self, patches: NDArray[np.uint8] | Tensor) -> Patches:
        """Move a batch to where the network is, channels first."""
        # A copy of an array: it may be a part of a file, which PyTorch could not write to.
        batch = torch.from_numpy(np.array(patches)) if isinstance(patches, np.ndarray) else patches
        return (batch.permute(0, 3, 1, 2) if batch.shape[3] == 3 else batch).to(self.device)

    def _classifier(self, tta: bool | None) -> InferenceNetwork:
        """Make what computes logits, or take what the last call made if the network has not changed since."""
        settings = self.settings if tta is None else replace(self.settings, tta=tta)
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        # A tensor that is changed in place has a new version, so further training makes a new copy.
        state = (settings.tta, *((id(tensor), tensor._version) for tensor in tensors))
        if self._prepared is None or self._prepared[0] != state:
            self._prepared = (state, InferenceNetwork(settings.network(self.network), settings.precision))
        return self._prepared[1]


def check_same_patches(runs: Sequence[TrainedRun], splits: Iterable[SplitName]) -> None:
    """Refuse to compare runs on different patches.

    Args:
        runs: At least one.
        splits: What they are to be compared on.

    Raises:
        UserError: If a split of one is not that of the first.
    """
    for run, split in itertools.product(runs, splits):
        if run.data.packed(split).fingerprint != runs[0].data.packed(split).fingerprint:
            raise UserError(
                f"Expected runs on the same patches, but the {split} split of {runs[0].folder.path} "
                f"({runs[0].data.root}) is not that of {run.folder.path} ({run.data.root}); give one --data.root for "
                f"all."
            )


def _check_patches(patches: NDArray[np.uint8] | Tensor) -> None:
    shape = tuple(patches.shape)
    if patches.dtype not in (np.uint8, torch.uint8) or shape[1:] not in (PATCH_SHAPE, (3, *PATCH_SHAPE[:2])):
        raise ValueError(
            f"Expected patches as uint8 of shape (count, 96, 96, 3) or (count, 3, 96, 96), but found {patches.dtype} "
            f"of shape {shape}."
        )
