"""Published runs: those that come with the package, by name, and those on the Hugging Face hub.

A published run is a run folder that has its weights in `model.safetensors` and no checkpoints: it can be used like any
other, and cannot be trained further.
"""

import hashlib
from pathlib import Path
from typing import Final

from pcam.errors import UserError
from pcam.extras import import_extra

WEIGHTS_FILE: Final = "model.safetensors"
"""The file with the weights of a published run."""

HUB: Final = "hf://"
"""What the address of a run on the Hugging Face hub begins with."""

RESULTS_FOLDER: Final = Path("lightning_logs", "published")
"""Where results of published runs are written, as their own folders are not the user's.

Each has a folder whose name is that of the run and the beginning of the SHA-256 of its weights."""

_SHIPPED: Final = Path(__file__).parent / "pretrained"
_NEEDED: Final = ("config.yaml", WEIGHTS_FILE, "environment.json", "evaluation/*/metrics.json")


def shipped_runs() -> list[str]:
    """List the names of the runs that come with the package, sorted."""
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{WEIGHTS_FILE}"))


def find_published(path: Path) -> tuple[Path, str] | None:
    """Find a published run that is named and not given as a folder.

    Args:
        path: The name of a run that comes with the package, such as "best", or the address of one on the Hugging Face
            hub, such as "hf://owner/name", or "hf://owner/name@revision".

    Returns:
        Its folder, and the name of the folder for its results; None if `path` is neither.

    Raises:
        UserError: If the hub does not have it, or cannot be reached.
    """
    if str(path) in shipped_runs():
        return _SHIPPED / path, _results_name(str(path), _SHIPPED / path)
    text = str(path).replace("hf:/", HUB) if not str(path).startswith(HUB) else str(path)  # a Path drops a slash
    if not text.startswith(HUB):
        return None
    name, _, revision = text.removeprefix(HUB).partition("@")
    folder = _download(name, revision or None)
    return folder, _results_name(name.replace("/", "--"), folder)


def _results_name(name: str, folder: Path) -> str:
    """Name the folder for results after the weights too: others of the same name have thresholds of their own."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():  # which loading says
        return name
    with weights.open("rb") as file:
        return f"{name}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


def _download(name: str, revision: str | None) -> Path:
    """Fetch what is needed of a run from the hub into its cache; nothing that is there already is fetched again."""
    hub = import_extra("huggingface_hub", "hub")
    errors = import_extra("huggingface_hub.errors", "hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
    except errors.HFValidationError as error:
        raise UserError(
            f"Expected the address of a run on the Hugging Face hub, {HUB}owner/name, but found '{HUB}{name}'; correct "
            f"it."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"Expected a run at {HUB}{name}, but the Hugging Face hub did not give it "
            f"({' '.join(str(error).split())[:160]}); correct the name, log in if it is not public, or download it "
            f"where there is a connection and give its folder."
        ) from error
