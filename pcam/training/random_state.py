"""The global random state in the checkpoint, so that a resumed run draws what the uninterrupted one would have."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class RandomState(Callback):
    """Save the state that dropout draws from, and restore it where training goes on.

    Of several processes, each has the state of its own GPU saved and restored (not tried on GPUs); of the CPU it is the
    state of the first process. On an Apple GPU nothing is saved, and what a resumed run draws is not what the
    uninterrupted one would have.

    The order and the augmentation of patches need none of it: they are functions of seed and epoch.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The random states of CPU and GPUs; of several processes, that of the GPU of each."""
        cuda = torch.cuda.get_rng_state_all()
        if cuda and _processes() > 1:  # to this process, the GPUs of others have never been drawn from
            cuda = [torch.empty_like(cuda[0])] * _processes()
            torch.distributed.all_gather_object(cuda, torch.cuda.get_rng_state())
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: setting up draws from them too."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states; those of GPUs only if there are as many as there were."""
        if not self._restored:
            return
        torch.set_rng_state(self._restored["cpu"].cpu())
        cuda: list[Tensor] = self._restored["cuda"]
        if torch.cuda.is_available() and len(cuda) == _processes() > 1:
            torch.cuda.set_rng_state(cuda[trainer.global_rank].cpu())
        elif len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in cuda])
        self._restored = {}


def _processes() -> int:
    """The number of processes that train together."""
    is_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_several else 1
