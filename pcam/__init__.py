"""pcam: the trainer, the study and the reference result for PatchCamelyon.

The names below are the public interface; each is imported when it is first used, so that `import pcam` takes no time.
Everything else may change without notice. docs/library.md shows what they do together.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcam.data.datamodule import PCamDataModule
    from pcam.data.packed import PackedSplit
    from pcam.errors import UserError
    from pcam.evaluation.comparison import compare
    from pcam.evaluation.measurement import Choices, measure
    from pcam.evaluation.predictions import Predictions
    from pcam.models import BaselineCNN, MobileNetV2, TimmNetwork
    from pcam.run_folder import RunFolder
    from pcam.trained import TrainedRun
    from pcam.training import BatchNormReadings, PatchClassifier
    from pcam.training.recording import recording

    __version__: str

_HOMES = {
    "BaselineCNN": "pcam.models",
    "BatchNormReadings": "pcam.training",
    "Choices": "pcam.evaluation.measurement",
    "MobileNetV2": "pcam.models",
    "PCamDataModule": "pcam.data.datamodule",
    "PackedSplit": "pcam.data.packed",
    "PatchClassifier": "pcam.training",
    "Predictions": "pcam.evaluation.predictions",
    "RunFolder": "pcam.run_folder",
    "TimmNetwork": "pcam.models",
    "TrainedRun": "pcam.trained",
    "UserError": "pcam.errors",
    "compare": "pcam.evaluation.comparison",
    "measure": "pcam.evaluation.measurement",
    "recording": "pcam.training.recording",
}

__all__ = [
    "BaselineCNN",
    "BatchNormReadings",
    "Choices",
    "MobileNetV2",
    "PCamDataModule",
    "PackedSplit",
    "PatchClassifier",
    "Predictions",
    "RunFolder",
    "TimmNetwork",
    "TrainedRun",
    "UserError",
    "__version__",
    "compare",
    "measure",
    "recording",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        return version("pcam")
    if name not in _HOMES:
        raise AttributeError(f"module 'pcam' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion in a notebook."""
    return sorted({*globals(), *__all__})
