"""The command `pcam`, which `python -m pcam` is too: one of its commands, named by the first word."""

import sys
from importlib import import_module
from typing import Final

import pcam
from pcam.commands.prepare_data import COMMANDS as DATA_COMMANDS
from pcam.commands.prepare_data import SPELLED
from pcam.door import Arguments, first_line, front_door, leave, run_function
from pcam.terminal import UNREAD, end_output, similar_names

MODULES: Final = (
    "train", "probe", "embed", "evaluate", "average", "predict", "slide", "explain", "export", "page", "study",
    "configs", "benchmark", "prepare_data",
)  # fmt: skip
"""The commands that have a module of their own in `pcam.commands`, with a `main`."""


def main(args: Arguments = None) -> None:
    """Run a command, or list them.

    Args:
        args: The command line; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words or words[0] in ("-h", "--help"):
        say(overview())
    elif words[0] == "--version":
        say(f"pcam {pcam.__version__}")
    elif words[0] in MODULES:
        import_module(f"pcam.commands.{words[0]}").main(words[1:])
    elif words[0] in DATA_COMMANDS:
        run_data_command(words)
    else:
        advice = similar_names(words[0], [*MODULES, *DATA_COMMANDS], "pcam --help lists them", likeness=0.4)
        leave(f"Expected a command of pcam, but found '{words[0]}'; {advice}.", 2)


def say(text: str) -> None:
    """Print something, wherever the process is started and whether it is read or not."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        end_output()
        sys.exit(UNREAD)


@front_door
def run_data_command(args: Arguments = None) -> None:
    """Run one of the commands that prepare data.

    Args:
        args: The name of the command, and its command line.
    """
    assert args is not None
    run_function(DATA_COMMANDS[args[0]], args[1:], SPELLED.get(args[0], {}))


def overview() -> str:
    """What pcam is and which commands it has, a line each."""
    summaries = {name: (import_module(f"pcam.commands.{name}").__doc__ or "").partition("\n")[0] for name in MODULES}
    summaries |= {name: first_line(function) for name, function in DATA_COMMANDS.items()}
    width = max(map(len, summaries))
    return "\n".join(
        [
            "usage: pcam COMMAND [options]",
            "",
            "The trainer, the study and the reference result for PatchCamelyon, the benchmark for finding metastases",
            "in lymph nodes. `pcam COMMAND --help` explains a command.",
            "",
            *(f"  {name:{width}}  {summary}" for name, summary in summaries.items()),
        ]
    )


if __name__ == "__main__":
    main()
