"""The command line that all scripts share."""

import argparse
import errno
import functools
import importlib
import inspect
import itertools
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, Protocol, cast

import docstring_parser
import torch
from jsonargparse import ActionYesNo
from jsonargparse.typing import PositiveFloat, restricted_number_type
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pcam.atomic import atomic_path
from pcam.data import PCamDataModule
from pcam.errors import StoppedError, UserError
from pcam.evaluation.predictions import Predictions
from pcam.memory import keep_freed_memory
from pcam.options import MONITORS, CheckpointName, Monitor, Precision, ResumeName, SplitName
from pcam.run_folder import RunFolder
from pcam.training import PatchClassifier
from pcam.training.checkpoints import AtomicCheckpoints, BestCheckpoint, LastCheckpoint, load_checkpoint
from pcam.training.classifier import PredictOutput
from pcam.training.curves import Curves
from pcam.training.divergence import Divergence
from pcam.training.enlarged_statistics import EnlargedStatistics
from pcam.training.hyperparameters import Hyperparameters
from pcam.training.interruption import Interruption
from pcam.training.metrics_file import MetricsFile
from pcam.training.progress import ProgressBar
from pcam.training.random_state import RandomState
from pcam.training.train_loss import TrainLoss

Arguments = list[str] | None
"""Words of a command line; None is those that the process was started with."""


@dataclass(frozen=True)
class DataPlace:
    """Where the patches are, if not where the run's config says.

    Args:
        root: Folder with the data; null is the folder that the run was trained on.
    """

    root: Path | None = None


AS_TRAINED: Final = DataPlace()
"""The data that the run was trained on."""

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""What a system may refuse that is the user's to mend: rights, a read-only or full disk, a quota."""


Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", 2**32 - 1)])
"""What Lightning takes for a seed."""


class Main(Protocol):
    """A script's main function."""

    def __call__(self, args: Arguments = None) -> None:
        """Run the script; None takes the process's own command line."""


def front_door(main: Main) -> Main:
    """Turn what can end a script into its exit code and one sentence.

    Exit code 1 for a `UserError`, 130 and 143 after Ctrl-C and SIGTERM; a wrong command line is the parser's 2. A bug
    keeps its traceback.

    Args:
        main: A script's main function.

    Returns:
        The same function, which ends with `SystemExit` in these cases.
    """

    @functools.wraps(main)
    def guarded(args: Arguments = None) -> None:
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            main(args)
        except UserError as error:
            _leave(str(error), 1)
        except StoppedError as error:
            _leave(str(error), 128 + error.signal_number)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            _leave(
                f"Expected to read or write {error.filename or 'a file'}, but the system refused: {error.strerror}.", 1
            )
        except KeyboardInterrupt:
            _leave("Interrupted.", 128 + signal.SIGINT)
        finally:
            signal.signal(signal.SIGTERM, before)

    return guarded


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    """End by an exception, as Ctrl-C does: what is half written is cleared away."""
    raise StoppedError(signal_number, "Stopped.")


def _leave(sentence: str, exit_code: int) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(exit_code)


class Parser(LightningArgumentParser):
    """A parser that answers a wrong command line with one sentence and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence, without the usage, which is longer than a screen."""
        _leave(" ".join(message.split()), 2)

    def add_function(self, function: Callable[..., None], skip: Set[str] = frozenset()) -> None:
        """Add a function's parameters as options, each explained by its docstring; what is False becomes a switch.

        Args:
            function: Its parameters, but those that are skipped, can be given by name.
            skip: Names of parameters that are added otherwise.
        """
        parameters = inspect.signature(function).parameters.items()
        switches = {name for name, parameter in parameters if parameter.default is False} - skip
        for explained in docstring_parser.parse(function.__doc__ or "").params:
            if explained.arg_name in switches:
                self.add_argument(f"--{explained.arg_name}", action="store_true", help=explained.description)
        self.add_function_arguments(function, as_positional=True, skip={*skip, *switches})

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and answer a config that is no text with one sentence too."""
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(
                f"Expected a config in UTF-8, but found the byte {error.object[error.start]:#04x} at place "
                f"{error.start} ({error.reason}); save it as UTF-8."
            )


def run_subcommand(description: str, functions: Mapping[str, Callable[..., None]], args: Arguments) -> None:
    """Run one of several functions as a subcommand; its options come from its signature and docstring.

    Args:
        description: What the script is for.
        functions: The subcommands, by name.
        args: The command line.
    """
    parser = Parser(description=description)
    subcommands = parser.add_subcommands(dest="command")
    for name, function in functions.items():
        subparser = Parser(description=(function.__doc__ or "").partition("\n")[0])
        subparser.add_function(function)
        subcommands.add_subcommand(name, subparser)
    config = parser.instantiate(parser.parse_args(args))
    functions[config.command](**config[config.command])


class PCamCLI(LightningCLI):
    """From a config and a command line to a classifier, its data and a trainer.

    Args:
        args: The command line, without the script's name.
        record: Whether the trainer records: into a new run folder, or into the one that `--resume` names. Without, it
            has no logger and writes no checkpoint.
        precision: What a trainer that does not record evaluates in.
    """

    run: RunFolder | None = None
    """The run folder; None if nothing is recorded."""

    checkpoint_step: int = 0
    """Optimizer steps behind the weights that `load_run` loaded."""

    def __init__(self, args: ArgsType = None, *, record: bool = True, precision: Precision = "32-true") -> None:
        self.record = record
        self.precision = precision
        _quieten()
        keep_freed_memory()
        super().__init__(
            PatchClassifier,
            PCamDataModule,
            save_config_callback=None,  # the run folder has its own, which `--resume` leaves in place
            parser_class=Parser,
            parser_kwargs={"description": "Train a classifier of PatchCamelyon's patches."},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `config.yaml` says all; a checkpoint holds tensors and counters
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is decided before the parts are built."""
        parser.add_argument(
            "--seed_everything",
            type=Seed,
            default=1,
            help="Seed of all that is random: weights, order, augmentation, dropout; 0 to 4,294,967,295.",
        )
        parser.add_argument("--experiment", type=str, required=True, help="Name of the experiment: the config's name.")
        parser.add_argument("--monitor", type=Monitor, required=True, help="What the best checkpoint is best in.")
        parser.add_argument(
            "--runs_dir",
            type=Path,
            default=Path("lightning_logs"),
            help="Folder of all runs; this one becomes <runs_dir>/<experiment>/version_N.",
        )
        parser.add_argument(
            "--checkpoint_every_seconds",
            type=PositiveFloat | None,
            default=None,
            help="Write last.ckpt also this long after the one before; null only after validation and at the end.",
        )
        parser.add_argument(
            "--compile",
            action=ActionYesNo,
            default=False,
            help="Let torch.compile make the training step: about a minute at the start, faster steps from then on. "
            "On a CPU it needs a C++ compiler.",
        )
        parser.add_argument(
            "--resume",
            type=Path | None,
            default=None,
            help="A run folder to go on in, with its own config and its last checkpoint, instead of --config.",
        )
        parser.add_argument(
            "--resume_from",
            type=ResumeName,
            default="last",
            help="The checkpoint that --resume goes on from: last, or previous, the one before it.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the trainer (without what the run folder decides), the model and the data."""
        skip = {"logger", "enable_checkpointing", "default_root_dir", "use_distributed_sampler"}
        parser.add_class_arguments(
            Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip=skip
        )
        parser.set_defaults({"trainer.enable_model_summary": False})  # `fit` says in a line what it trains
        parser.add_lightning_class_args(PatchClassifier, "model")
        parser.add_lightning_class_args(PCamDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the data the run's seed."""
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; `--resume RUN` stands for `--config RUN/config.yaml`."""
        words = sys.argv[1:] if args is None else list(args)
        peeler = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        peeler.add_argument("--resume", type=Path)
        resume: Path | None = peeler.parse_known_args(words)[0].resume
        if resume is not None:
            self.run = RunFolder.find(resume)
            words = ["--config", str(self.run.config), *words]
        self.config = parser.parse_args(words)
        if resume is not None and len(self.config.config) > 1:
            parser.error("Expected --config or --resume, but found both; a resumed run has its own config.")
        _refuse_null(parser, "data", PCamDataModule, self.config.data)
        _refuse_null(parser, "trainer", Trainer, self.config.trainer)
        for part in ("network", "optimizer", "scheduler"):
            chosen = self.config.model[part]
            if chosen is not None:
                module, _, name = chosen.class_path.rpartition(".")
                chosen_class = getattr(importlib.import_module(module), name)
                _refuse_null(parser, f"model.{part}", chosen_class, chosen.get("init_args") or {})
        # Absolute, so that the saved config works from any folder.
        self.config.data.root = Path(self.config.data.root).expanduser().resolve()
        if self.config.data.cache_dir is not None:
            self.config.data.cache_dir = Path(self.config.data.cache_dir).expanduser().resolve()
        self.config.runs_dir = Path(self.config.runs_dir).expanduser()
        if self.config.trainer.accumulate_grad_batches != 1:
            parser.error(
                f"Expected trainer.accumulate_grad_batches to be 1, but found "
                f"{self.config.trainer.accumulate_grad_batches}: a step is one batch in what is logged, validated and "
                f"resumed; raise data.batch_size instead."
            )
        init_args = self.config.model.network.get("init_args") or {}
        weights = init_args.get("weights")
        if weights is not None and Path(weights).is_file():
            init_args["weights"] = str(Path(weights).resolve())

    def before_instantiate_classes(self) -> None:
        """Note what the config says before anything in it is replaced."""
        config = self.config.clone()
        for key in ("config", "resume", "resume_from"):
            config.pop(key, None)
        self._saved_config = self.parser.dump(config, skip_none=False)
        if self.run is not None or not self.record:
            # The checkpoint holds all weights: nothing is downloaded again.
            init_args = self.config.model.network.get("init_args") or {}
            if "weights" in init_args:
                init_args["weights"] = None

    def instantiate_classes(self) -> None:
        """Build all parts."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # PyTorch's
            raise _refused(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; it records into a run folder, unless told not to or in a `fast_dev_run`."""
        progress: list[Callback] = [ProgressBar()] if self.config.trainer.enable_progress_bar is not False else []
        if not self.record:
            # None of the config's options for training: every patch of a split is evaluated, in full precision unless
            # asked otherwise.
            return Trainer(
                precision=self.precision,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=bool(progress),
                callbacks=progress,
            )
        kwargs["use_distributed_sampler"] = False  # our sampler does that itself
        kwargs["logger"] = False
        callbacks: list[Callback] = [TrainLoss(), RandomState(), EnlargedStatistics(), *progress]
        if not self.config.trainer.fast_dev_run:
            resume_step = None
            if self.run is not None:
                resume_step = self._resume_step(self.run)
            self.datamodule.prepare_data()  # before there is a run folder, which nothing wrong with the data may leave
            if self.run is None:
                self.run = self._claim_run()
                self._write_config(self.run)
            else:  # once it goes on: what it cannot go on with leaves its config as it is
                callbacks.append(LambdaCallback(on_train_start=functools.partial(self._keep_config, self.run)))
            kwargs["plugins"] = [AtomicCheckpoints(), *self._plugins()]
            kwargs["logger"] = [
                TensorBoardLogger(
                    self.run.path.parent.parent,
                    name=self.run.path.parent.name,
                    version=self.run.path.name,
                    default_hp_metric=False,
                    purge_step=None if resume_step is None else resume_step + 1,
                ),
                MetricsFile(self.run.metrics, resume_step),
            ]
            monitor: Monitor = self.config.monitor
            self.hyperparameters = Hyperparameters(self._hyperparameters(), monitor)
            callbacks += [
                Divergence(self.run),
                Curves(),
                self.hyperparameters,
                BestCheckpoint(self.run, monitor),
                LastCheckpoint(self.run, self.config.checkpoint_every_seconds),
                Interruption(self.run),
            ]
        self.trainer_defaults["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # Lightning raises many kinds for values of the right type that it cannot use
            raise _refused(error) from error

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
            temporary.write_text(self._saved_config)

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

    def fit(self) -> None:
        """Train, or go on training, and record what it ran on."""
        ckpt_path = None
        if self.config.resume is not None and self.run is not None:
            ckpt_path = self.run.checkpoint(self.config.resume_from)
            _load_weights(self, ckpt_path, "the network of this command line")
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        frozen = sum(weight.numel() for weight in self.model.parameters()) - trained
        rank_zero_info(f"{type(self.model.network).__name__}: {trained:,} parameters learn, {frozen:,} are frozen.")
        if self.config.compile:
            self._compile()
        if self.run is not None:
            self._write_environment(self.run)
        self.trainer.fit(self.model, self.datamodule, ckpt_path=ckpt_path, weights_only=True)

    def _compile(self) -> None:
        compiler = os.environ.get("CXX", "g++")
        if self.trainer.strategy.root_device.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(
                f"Expected a C++ compiler for --compile, but found no {compiler}; install one, name it in CXX, or "
                f"leave out --compile."
            )
        self.model.compile_training()

    @rank_zero_only
    def _write_environment(self, run: RunFolder) -> None:
        device = self.trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        splits: tuple[SplitName, ...] = ("train", "valid")
        run.write_environment(name, {split: self.datamodule.packed(split).fingerprint for split in splits})

    @rank_zero_only
    def report(self) -> None:
        """Say what training reached, and the commands that come next."""
        if self.run is None:
            print("A fast_dev_run went through; it records nothing.")
            return
        best = self.hyperparameters.best
        if best:
            print(f"Best {self.config.monitor} at step {best['step']:,}: {self.run.checkpoint('best')}")
            print(", ".join(f"{name} {best[name]:.4f}" for name in MONITORS))
        print(f"Watch:    tensorboard --logdir {self.config.runs_dir}")
        print(f"Evaluate: python scripts/evaluate.py {self.run.path}")

    def predict(self, split: SplitName, *, shifted: bool = False) -> Predictions:
        """Classify every patch of a split once.

        Args:
            split: "train", "valid" or "test"; never augmented.
            shifted: Whether patches have the staining of the data's `stain_shifts`.

        Returns:
            The predictions, in the order of the packed store.
        """
        store = self.datamodule.packed(split)
        batches = self.trainer.predict(self.model, self.datamodule.loader(split, shifted=shifted))
        logits = torch.cat([output["logits"] for output in cast(list[PredictOutput], batches)]).cpu().numpy()
        return Predictions(store.ids(), store.labels, logits, store.pixel_hashes(), store.slides())


def load_run(
    run: RunFolder, checkpoint: CheckpointName, data_root: Path | None = None, precision: Precision = "32-true"
) -> PCamCLI:
    """Build a run's classifier and data from its folder.

    Args:
        run: The run folder.
        checkpoint: Which weights: "best" or "last".
        data_root: Folder with the data; None is the one that the run was trained on.
        precision: What it evaluates in.

    Returns:
        The classifier with the checkpoint's weights, the data, and a trainer that records nothing.

    Raises:
        UserError: If there is no such checkpoint, or it does not fit the run's config.
    """
    path = run.checkpoint(checkpoint)
    arguments = ["--config", str(run.config)]
    if data_root is not None:
        arguments += ["--data.root", str(data_root)]
    cli = PCamCLI(arguments, record=False, precision=precision)
    cli.checkpoint_step = _load_weights(cli, path, f"the network in {run.config}")
    return cli


def _load_weights(cli: PCamCLI, path: Path, network: str) -> int:
    """Load a checkpoint's weights; return the optimizer steps behind them."""
    contents = load_checkpoint(path)
    try:
        cli.model.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"Expected {path} to fit {network} ({type(cli.model.network).__name__}), but its weights are of another "
            f"network; bring the checkpoint and the config of one run together."
        ) from error
    step: int = contents["global_step"]
    return step


def check_same_patches(folders: Sequence[RunFolder], runs: Sequence[PCamCLI], splits: Sequence[SplitName]) -> None:
    """Refuse to compare runs on different patches.

    Args:
        folders: The run folders.
        runs: The same runs, loaded.
        splits: What they are to be compared on.

    Raises:
        UserError: If a split of one is not that of the first.
    """
    for (folder, run), split in itertools.product(zip(folders, runs, strict=True), splits):
        if run.datamodule.packed(split).fingerprint != runs[0].datamodule.packed(split).fingerprint:
            raise UserError(
                f"Expected runs on the same patches, but the {split} split of {folders[0].path} "
                f"({runs[0].datamodule.root}) is not that of {folder.path} ({run.datamodule.root}); give one "
                f"--data.root for all."
            )


def _refused(error: Exception) -> UserError:
    return UserError(
        f"Expected values that PyTorch and Lightning take, but found one that they refuse "
        f"({' '.join(str(error).split())}); correct the config."
    )


def _refuse_null(parser: LightningArgumentParser, key: str, configured: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse null where a class does not take it, which jsonargparse 4.53 lets through in files."""
    parameters = inspect.signature(configured).parameters
    for name, value in options.items():
        parameter = parameters.get(name)
        if value is not None or parameter is None or parameter.default is None:
            continue
        if not any(word in str(parameter.annotation) for word in ("None", "Optional")):
            parser.error(
                f"Expected a value of type {parameter.annotation} for {key}.{name} ({configured.__name__}), but found "
                f"null; leave it out to have its default."
            )


def _quieten() -> None:
    """Silence what says nothing about the user's run."""
    # The store is memory-mapped: a batch is read faster than a worker process could hand it over.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # A run that resumes goes on in its own folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # A frozen part is meant to be.
    warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start of training")
    # Lightning 2.6 with torch 2.15; look again when it is raised.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Lightning 2.6 recommends a product at every start.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
