"""`PCamCLI`: from a config and a command line to a classifier, its data and a trainer."""

import argparse
import functools
import importlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import isclass
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from pcam.atomic import atomic_path, expanded
from pcam.checkpoint_file import load_checkpoint
from pcam.data import PCamDataModule
from pcam.data.layouts import find_layout
from pcam.door import Arguments, Parser, program, with_config_paths
from pcam.errors import UserError
from pcam.resuming import check_changes, check_data
from pcam.run_folder import RunFolder, is_folder_name
from pcam.run_options import add_run_options
from pcam.training import PatchClassifier
from pcam.training.progress import ProgressBar
from pcam.training.recording import Recording, recording, steps_callbacks
from pcam.yaml_files import check_yaml


class TrainingParser(Parser, LightningArgumentParser):
    """The parser of a training: Lightning's, with the front door's answers."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence; where a class is not there, with the names of those that are like it."""
        missing = re.search(
            r"class_path '[^']*': module '([^']+)' has no attribute '([^']+)'", " ".join(message.split())
        )
        if missing:
            names = [name for name, value in vars(importlib.import_module(missing[1])).items() if isclass(value)]
            near = get_close_matches(missing[2], names, n=3, cutoff=0.4)
            similar = ", ".join(f"{missing[1]}.{name}" for name in near) or "none"
            message = (
                f"Expected a class, but found {missing[1]}.{missing[2]}, which is not there; similar names: {similar}."
            )
        super().error(message, ex)


class PCamCLI(LightningCLI):
    """From a config and a command line to a classifier, its data and a trainer.

    The trainer records: into a new run folder, or into the one that `--resume` names, or nowhere in a `fast_dev_run`.

    Args:
        args: The command line, without the program's name; null takes that of the process.
    """

    run: RunFolder | None = None
    """The run folder; None if nothing is recorded."""

    is_new: bool = False
    """Whether the run folder has been made for this training."""

    record: Recording | None = None
    """What records the run; None if nothing is recorded."""

    def __init__(self, args: Arguments = None) -> None:
        super().__init__(
            PatchClassifier,
            PCamDataModule,
            save_config_callback=None,  # the run folder has its own, which `--resume` leaves in place
            parser_class=TrainingParser,
            parser_kwargs={"prog": program(), "description": "Train a classifier of PatchCamelyon's patches."},
            args=sys.argv[1:] if args is None else list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `config.yaml` says all; a checkpoint holds tensors and counters
        )

    @property
    def resume_checkpoint(self) -> Path | None:
        """The checkpoint that training goes on from; None for a new run."""
        if self.run is None or self.config.resume is None:
            return None
        return self.run.checkpoint(self.config.resume_from)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is decided before the parts are built."""
        add_run_options(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the trainer (without what the run folder decides), the model and the data."""
        skip = {"logger", "enable_checkpointing", "default_root_dir", "use_distributed_sampler"}
        parser.add_class_arguments(
            Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip=skip
        )
        parser.set_defaults({"trainer.enable_model_summary": False})  # a line says what is trained
        parser.add_lightning_class_args(PatchClassifier, "model")
        parser.add_lightning_class_args(PCamDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the data the run's seed."""
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; `--resume RUN` stands for `--config RUN/config.yaml`, and a config's bare name for a shipped one."""
        assert isinstance(parser, TrainingParser)
        peeler = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        peeler.add_argument("--resume", type=Path)
        resume: Path | None = peeler.parse_known_args(args)[0].resume
        words = with_config_paths(args)
        if resume is not None:
            self.run = RunFolder.find(resume)
            check_yaml(self.run.config)
            own = ["--config", str(self.run.config)]
            words = [*own, *words]
        self.config = parser.parse_args(words)
        if resume is None and self.config.resume is not None:
            parser.error(
                f"Expected --resume on the command line alone, but found resume: {self.config.resume} in a config; "
                f"remove it there, and type --resume {self.config.resume}."
            )
        if resume is not None and len(self.config.config) > 1:
            parser.error("Expected --config or --resume, but found both; a resumed run has its own config.")
        _check_values(parser, self.config)
        _check_replaced_network(parser, self.config, args)
        if self.run is not None:
            recorded, given = (yaml.safe_load(parser.dump(each)) for each in (parser.parse_args(own), self.config))
            check_changes(recorded, given, self.run)
        make_absolute(self.config)

    def before_instantiate_classes(self) -> None:
        """Note what the config says before anything in it is replaced, and look whether the data are there."""
        find_layout(self.config.data.root)  # before weights are downloaded
        if self.run is None:
            complete_network(self.config.model.network)
        config = self.config.clone()
        for key in ("config", "resume", "resume_from", "allow_other_data"):
            config.pop(key, None)
        self._saved_config = self.parser.dump(config, skip_none=False)
        init_args = self.config.model.network.get("init_args") or {}
        if self.run is not None and "weights" in init_args:
            init_args["weights"] = None  # the checkpoint holds all weights: nothing is downloaded again

    def instantiate_classes(self) -> None:
        """Build all parts."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # PyTorch's
            raise _refused(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; it records into a run folder, except in a `fast_dev_run`."""
        try:
            options = self._recording_options()
            try:
                return super().instantiate_trainer(**kwargs, **options)
            except Exception as error:  # Lightning raises many kinds for values of the right type that it cannot use
                raise _refused(error) from error
        except BaseException:
            self.remove_untrained_run()
            raise

    def remove_untrained_run(self) -> None:
        """Remove the folder of a new run that no step was taken in: it would be in the way of the next."""
        if self.run is not None and self.is_new and not self.run.checkpoints.exists():
            shutil.rmtree(self.run.path, ignore_errors=True)

    def _recording_options(self) -> dict[str, Any]:
        """Make what the trainer records with; its callbacks become the trainer's defaults."""
        progress: list[Callback] = [ProgressBar()] if self.config.trainer.enable_progress_bar is not False else []
        if self.config.trainer.fast_dev_run:
            options: dict[str, Any] = {"use_distributed_sampler": False, "logger": False}
            callbacks = [*steps_callbacks(), *progress]
        else:
            self.record = self._recording(progress)
            options = self.record.trainer_options()
            callbacks = options.pop("callbacks")
            options["plugins"] += self._plugins()
        self.trainer_defaults["callbacks"] = callbacks
        return options

    def _recording(self, callbacks: list[Callback]) -> Recording:
        """Make what records into the run folder, which comes into being here unless it is there."""
        resume_step = None if self.run is None else self._resume_step(self.run)
        self.datamodule.prepare_data()  # before there is a run folder, which nothing wrong with the data may leave
        if self.run is None:
            self.run = self._claim_run()
            self.is_new = True
            self._write_config(self.run)
        else:
            found = {split: self.datamodule.packed(split).fingerprint for split in ("train", "valid")}
            check_data(self.run, found, allow_other=self.config.allow_other_data)
            # once training goes on: options that it cannot go on with leave the config as it is
            keep_config = functools.partial(self._keep_config, self.run)
            callbacks = [*callbacks, LambdaCallback(on_train_start=keep_config)]
        return recording(
            self.run,
            self.config.monitor,
            hyperparameters=self._hyperparameters(),
            checkpoint_every_seconds=self.config.checkpoint_every_seconds,
            resume_step=resume_step,
            callbacks=callbacks,
        )

    def _resume_step(self, run: RunFolder) -> int:
        """Optimizer steps behind the checkpoint that training goes on from."""
        try:
            step: int = load_checkpoint(run.checkpoint(self.config.resume_from))["global_step"]
        except UserError as error:
            previous = run.checkpoints / "previous.ckpt"
            if self.config.resume_from == "last" and previous.exists():
                raise UserError(
                    f"{str(error).rstrip('.')}; {previous} is the one before it: --resume_from previous."
                ) from error
            raise
        return step

    def _plugins(self) -> list[Any]:
        plugins = self.config_init.trainer.plugins
        return plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]

    def _keep_config(self, run: RunFolder, trainer: Trainer, classifier: PatchClassifier) -> None:
        self._write_config(run)

    @rank_zero_only
    def _write_config(self, run: RunFolder) -> None:
        with atomic_path(run.config) as temporary:
            temporary.write_text(self._saved_config, encoding="utf-8")

    def _claim_run(self) -> RunFolder:
        if getattr(rank_zero_only, "rank", 0) != 0:
            # Only the first process writes; Lightning sends the checkpoints' folder to the others.
            return RunFolder(self.config.runs_dir / self.config.experiment / "version_of_first_process")
        return RunFolder.claim(self.config.runs_dir, self.config.experiment)

    def _hyperparameters(self) -> dict[str, str | float | bool | None]:
        """What tells runs apart, flat, under short names."""
        model, data = self.config.model, self.config.data
        values: dict[str, str | float | bool | None] = {
            "experiment": self.config.experiment,
            "seed": self.config.seed_everything,
            "batch_size": data.batch_size,
            "augmentation": data.augmentation,
            "stain_jitter": data.stain_jitter,
            "max_steps": self.config.trainer.max_steps,
        }
        for part in ("network", "optimizer", "scheduler"):
            if model[part] is not None:
                values[part] = model[part].class_path.rpartition(".")[2]
                for name, value in (model[part].get("init_args") or {}).items():
                    values[f"{part}/{name}"] = value if isinstance(value, str | float | bool | None) else str(value)
        return values


def _check_values(parser: TrainingParser, config: Any) -> None:
    """Refuse values of the right type that training cannot go by."""
    for part in ("model", "data", "trainer"):
        if not isinstance(config.get(part), Namespace):
            parser.error(f"Expected the options of {part} in the config, but found {config.get(part)}; correct it.")
    parser.refuse_null("data", PCamDataModule, config.data)
    parser.refuse_null("trainer", Trainer, config.trainer)
    for part in ("network", "optimizer", "scheduler"):
        chosen = config.model[part]
        if chosen is not None:
            module, _, name = chosen.class_path.rpartition(".")
            chosen_class = getattr(importlib.import_module(module), name)
            parser.refuse_null(f"model.{part}", chosen_class, chosen.get("init_args") or {})
    if not is_folder_name(config.experiment):
        parser.error(
            f"Expected experiment to be the name of a folder below runs_dir, and no path, but found "
            f"{config.experiment!r}; choose another name."
        )
    for name, fault in _NOTHING.items():
        if config.trainer[name] is not None and config.trainer[name] == 0:
            parser.error(f"Expected trainer.{name} above 0, but found {config.trainer[name]}: {fault}; raise it.")
    if config.trainer.accumulate_grad_batches != 1:
        parser.error(
            f"Expected trainer.accumulate_grad_batches to be 1, but found "
            f"{config.trainer.accumulate_grad_batches}: a step is one batch in what is logged, validated and "
            f"resumed; raise data.batch_size instead."
        )


def _check_replaced_network(parser: TrainingParser, config: Any, words: list[str]) -> None:
    """Refuse that a network from the command line silently takes over the weights of the config's network."""
    network = config.model.network
    weights = (network.get("init_args") or {}).get("weights")
    if weights is None or any(word.startswith(_WEIGHTS_OPTIONS) for word in words):
        return
    for path in config.config or []:
        written = yaml.safe_load(Path(path.absolute).read_text(encoding="utf-8"))
        named = ((written or {}).get("model") or {}).get("network") or {}
        replaced = named if isinstance(named, str) else named.get("class_path", network.class_path)
        if replaced != network.class_path:
            parser.error(
                f"Expected --model.network.weights beside --model.network {network.class_path}, but found none: those "
                f"of the config ({weights}) are of {replaced}; name weights of your network, or null."
            )


_NOTHING: Final = {
    "max_steps": "nothing would be trained",
    "max_epochs": "nothing would be trained",
    "limit_train_batches": "nothing would be trained",
    "val_check_interval": "there would be no step before a validation",
    "check_val_every_n_epoch": "there would be no epoch before a validation",
    "log_every_n_steps": "there would be no step before an entry of the log",
}
"""Options of the trainer that cannot be 0, and why."""

_WEIGHTS_OPTIONS: Final = ("--model.network.weights", "--model.network.init_args.weights")


def make_absolute(config: Any) -> None:
    """Make paths absolute, so that the saved config works from any folder.

    Args:
        config: Parsed options with the sections data and model; changed in place.
    """
    config.data.root = _resolved(config.data.root, "data.root")
    if config.data.cache_dir is not None:
        config.data.cache_dir = _resolved(config.data.cache_dir, "data.cache_dir")
    if config.get("runs_dir") is not None:
        config.runs_dir = expanded(config.runs_dir, "runs_dir")
    init_args: Mapping[str, Any] = config.model.network.get("init_args") or {}
    weights = init_args.get("weights")
    if weights is not None and Path(weights).exists():
        config.model.network.init_args["weights"] = str(Path(weights).resolve())


def complete_network(network: Any) -> None:
    """Have a network write out what only its weights say, such as the size of its input; most have nothing to say.

    A saved config then builds the same network without these weights, as loading a run does.

    Args:
        network: The parsed option model.network; changed in place.
    """
    module, _, name = network.class_path.rpartition(".")
    complete = getattr(getattr(importlib.import_module(module), name), "complete", None)
    if complete is not None:
        network.init_args = Namespace(complete(network.init_args.as_dict()))  # type: ignore[no-untyped-call]


def _resolved(path: Path, argument: str) -> Path:
    """Make a path absolute, through links; where links go in a circle it stays one, which `Path.resolve` refuses."""
    return Path(os.path.realpath(expanded(path, argument)))


def _refused(error: Exception) -> UserError:
    return UserError(
        f"Expected values that PyTorch and Lightning take, but found one that they refuse "
        f"({' '.join(str(error).split())}); correct the config."
    )
