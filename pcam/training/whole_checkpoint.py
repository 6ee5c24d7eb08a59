"""Whether a checkpoint holds everything that training resumes from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from packaging.version import InvalidVersion, Version
from torch import Tensor

from pcam.checkpoint_file import load_checkpoint
from pcam.errors import UserError
from pcam.training.classifier import PatchClassifier


def check_whole(path: Path, classifier: PatchClassifier, trainer: Trainer, callbacks: Sequence[Callback]) -> None:
    """Refuse a checkpoint that lacks a part of the state of training, before anything of the run is changed.

    Lightning takes a checkpoint without the state of a callback or of the optimizer as it is, and training would
    silently start anew with that part. So each part must have the keys and the types that the same part has in a
    training that has just been set up.

    Args:
        path: The checkpoint.
        classifier: What is trained.
        trainer: What trains it.
        callbacks: The callbacks whose states must be there.

    Raises:
        UserError: If a part is missing or of another type; the message names it.
    """
    contents = load_checkpoint(path)
    optimizer, scheduler = classifier.make_optimizer()
    states = {callback.state_key: callback.state_dict() for callback in callbacks}
    expected = {
        "epoch": 0,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [] if scheduler is None else [scheduler.state_dict()],
        "callbacks": {key: state for key, state in states.items() if state},
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
    }
    fault = (
        _version_fault(contents)
        or _fault(contents, expected, "")
        or _state_fault(contents["optimizer_states"][0]["state"])
        or _grown_fault({key: contents["callbacks"].get(key, {}) for key in states}, states, "callbacks.")
    )
    if fault is not None:
        raise UserError(
            f"Expected a checkpoint with the whole state of training in {path}, but {fault}; bring back the file that "
            f"training wrote."
        )


def _version_fault(contents: Mapping[str, object]) -> str | None:
    """Name what is there instead of the version of Lightning, by which Lightning decides how to read the rest."""
    key = "pytorch-lightning_version"
    if key not in contents:
        return f"it lacks {key}"
    try:
        return None if Version(str(contents[key])).major >= 2 else f"its {key} is {contents[key]}, below 2"
    except InvalidVersion:
        return _not_a("version", contents[key], f"{key}.")


def _grown_fault(found: object, expected: object, place: str) -> str | None:
    """Name the first part that is no number or tensor, of those that callbacks have only after some training."""
    if isinstance(expected, Mapping) and expected and isinstance(found, Mapping):
        faults = (_grown_fault(found.get(key), value, f"{place}{key}.") for key, value in expected.items())
        return next((fault for fault in faults if fault), None)
    if isinstance(expected, Mapping) and not expected:
        if not isinstance(found, Mapping):
            return _not_a("mapping", found, place)
        bad = [name for name, value in found.items() if not isinstance(value, Mapping | int | float | Tensor)]
        return _not_a("number or tensor", found[bad[0]], f"{place}{bad[0]}.") if bad else None
    if expected is None and not isinstance(found, int | float | Tensor | None):
        return _not_a("number or tensor", found, place)
    return None


def _fault(found: object, expected: object, place: str) -> str | None:
    """Compare with what a new training has, and name the first part that differs; None on either side fits all."""
    if isinstance(expected, Mapping):
        return _mapping_fault(found, expected, place)
    if isinstance(expected, list):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return _not_a(f"list of {len(expected)}", found, place)
        faults = (_fault(found[number], value, f"{place}{number}.") for number, value in enumerate(expected))
        return next((fault for fault in faults if fault), None)
    if found is None or expected is None or _fits(found, expected):
        return None
    return _not_a(_kind(expected), found, place)


def _mapping_fault(found: object, expected: Mapping[Any, object], place: str) -> str | None:
    if not isinstance(found, Mapping):
        return _not_a("mapping", found, place)
    missing = [key for key in expected if key not in found]
    if missing:
        return f"it lacks {place}{missing[0]}"
    faults = (_fault(found[key], value, f"{place}{key}.") for key, value in expected.items())
    return next((fault for fault in faults if fault), None)


def _fits(found: object, expected: object) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and found.dtype == expected.dtype and found.shape == expected.shape
    if isinstance(expected, str):
        return isinstance(found, str)
    return not isinstance(expected, bool | int | float) or isinstance(found, bool | int | float | Tensor)


def _kind(expected: object) -> str:
    if isinstance(expected, Tensor):
        return f"tensor of {expected.dtype} and shape {tuple(expected.shape)}"
    return "text" if isinstance(expected, str) else "number"


def _state_fault(states: Mapping[object, object]) -> str | None:
    """Name the first state of a parameter that is not made of tensors and numbers; new optimizers have none yet."""
    for number, state in states.items():
        place = f"optimizer_states.0.state.{number}."
        if not isinstance(number, int) or not isinstance(state, Mapping):
            return _not_a("mapping", state, place)
        for name, value in state.items():
            if value is not None and not isinstance(value, bool | int | float | Tensor):
                return _not_a("number or tensor", value, f"{place}{name}.")
    return None


def _not_a(kind: str, found: object, place: str) -> str:
    value = repr(found) if isinstance(found, int | float) else type(found).__name__
    return f"its {place.rstrip('.') or 'content'} is no {kind} but {value}"
