#!/usr/bin/env python
"""Prepare data: synthetic patches.

python scripts/prepare_data.py synthesize --out data/synthetic --train 6000 --valid 1000 --test 1000 --seed 1
"""

from pathlib import Path

from pcam.cli import Arguments, front_door, run_subcommand
from pcam.data.synthetic import write_class_folders


def synthesize(out: Path, train: int = 6000, valid: int = 1000, test: int = 1000, seed: int = 1) -> None:
    """Write synthetic patches that look like H&E and follow PatchCamelyon's label rule, as class folders of PNG files.

    Args:
        out: The new folder.
        train: Patches in the train split, half of each class; at least 2.
        valid: Patches in the valid split.
        test: Patches in the test split.
        seed: The same seed gives the same patches.
    """
    write_class_folders(out, {"train": train, "valid": valid, "test": test}, seed)
    print(f"Wrote {train + valid + test:,} patches to {out}; train on them with --data.root {out}")


@front_door
def main(args: Arguments = None) -> None:
    """Run one of the subcommands.

    Args:
        args: The command line; None takes the process's own.
    """
    run_subcommand("Prepare PatchCamelyon's patches, or patches like them.", {"synthesize": synthesize}, args)


if __name__ == "__main__":
    main()
