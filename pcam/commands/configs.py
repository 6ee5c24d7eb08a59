"""List the configs that come with the package."""

import re

from pcam.door import Arguments, front_door, run_function
from pcam.shipped import find_config, list_configs


def configs() -> None:
    """List the configs that come with the package, with the question that each asks.

    An experiment's name is for `pcam train --config NAME`, a study's for `pcam study --config NAME`.
    """
    for heading, folder in {"experiments": "", "studies": "studies"}.items():
        names = list_configs(folder)
        width = max(map(len, names))
        print(f"{heading}:")
        for name in names:
            print(f"  {name:{width}}  {question(name, folder)}")


def question(name: str, folder: str = "") -> str:
    """Read the question that a config asks: the first sentence of the comment at its head.

    Args:
        name: A shipped config.
        folder: "" for an experiment, "studies" for a study.
    """
    comment = []
    for line in find_config(name, folder).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = re.sub(r"^Asks[^:]*: ", "", " ".join(comment))
    text = text[:1].upper() + text[1:]
    end = min((text.index(mark) + 1 for mark in ("? ", ". ") if mark in text), default=len(text))
    return text[:end]


@front_door
def main(args: Arguments = None) -> None:
    """List the configs that come with the package, with the question that each asks.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(configs, args)
