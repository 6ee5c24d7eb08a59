"""Open a page in the browser on which patches and larger images can be tried."""

from pathlib import Path
from tempfile import TemporaryDirectory

from pcam.commands.options import Port
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import CheckpointName
from pcam.run_folder import RunFolder


def page(
    runs: list[Path] | None = None,
    port: Port = 7860,
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    root: Path | None = None,
) -> None:
    """Open a page in the browser to try a network on patches and larger images.

    The page shows scores, decisions and where the network looked. It is at http://127.0.0.1:7860 until Ctrl-C. Only
    this machine can open it, and nothing leaves it.

    Args:
        runs: The run folders, or published runs by their names; several are shown side by side. Without any it is best,
            the network that comes with the package.
        port: The port of the page, 1 to 65,535.
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Score each patch by the mean over the eight symmetries of the square (test-time augmentation), at eight
            times the cost.
        root: A folder with patches of PatchCamelyon in any form, of which examples are shown; null shows painted ones.

    Raises:
        UserError: If a run cannot be used, or the port is taken.
    """
    runs = runs or [Path("best")]
    for run in runs:
        RunFolder.find(run)  # before PyTorch and Gradio are imported, which takes seconds
    from pcam.page.app import build, launch
    from pcam.trained import TrainedRun

    loaded = [TrainedRun.load(run, checkpoint, tta=tta) for run in runs]
    with TemporaryDirectory(prefix="pcam-page-") as place:
        blocks = build(loaded, Path(place), root)
        print(f"Open http://127.0.0.1:{port} in a browser; Ctrl-C ends the page.", flush=True)
        try:
            launch(blocks, port)
        except OSError as error:
            raise UserError(
                f"Expected port {port} to be free, but it cannot be used ({error}); choose another with --port."
            ) from error


@front_door
def main(args: Arguments = None) -> None:
    """Open the page.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(page, args, {"runs": "RUN", "root": "--data.root"})
