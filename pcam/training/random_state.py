"""The global random state in the checkpoint, so that a resumed run draws what the uninterrupted one would have."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class RandomState(Callback):
    """Save the state that dropout draws from, and restore it where training goes on.

    The order and the augmentation of patches need none of it: they are functions of seed and epoch.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The random states of CPU and GPUs."""
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: setting up draws from them too."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states; those of GPUs only if there are as many as there were."""
        if not self._restored:
            return
        torch.set_rng_state(self._restored["cpu"].cpu())
        cuda: list[Tensor] = self._restored["cuda"]
        if len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in cuda])
        self._restored = {}
