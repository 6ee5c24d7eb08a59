"""Ctrl-C, SIGTERM and a closed terminal: finish the step, write a checkpoint, say how to go on."""

import signal
from types import FrameType

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from pcam.errors import SIGNALS, StoppedError
from pcam.run_folder import RunFolder
from pcam.training.checkpoints import prepare_last, validation_is_due


class Interruption(Checkpoint):
    """On a signal, stop after the current step with a checkpoint; on a second Ctrl-C, stop at once.

    The signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal), except those that the process ignores.
    In the middle of a step the weights may be half updated, and Lightning would end with exit code 0 on SIGTERM. If a
    validation is due after the step, or under way, it is finished first: resuming would not repeat it. Of several
    processes all stop after the same step, whichever of them got the signal.

    A `Checkpoint`, because Lightning calls those after all other callbacks, in their order.

    Args:
        run: The run, whose `last.ckpt` is written.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._signal_number: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning puts the earlier handlers back when training ends."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._note)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self._signal_number is not None and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal_number = signal_number

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """Stop here if a signal came and no validation is due."""
        if not validation_is_due(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if a signal came."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._signal_number is not None, all=False):
            return
        path = self.run.checkpoints / "last.ckpt"
        prepare_last(self.run, trainer)
        trainer.save_checkpoint(path)
        raise StoppedError(
            self._signal_number or signal.SIGTERM,
            f"Interrupted after step {trainer.global_step}; {path} holds everything up to there. "
            f"{self.run.how_to_resume[0].upper()}{self.run.how_to_resume[1:]}",
        )
