#!/usr/bin/env python
"""Prepare data: fetch PatchCamelyon, look for its faults, make synthetic patches.

python scripts/prepare_data.py download --root data/pcam --splits [train,valid,test]
python scripts/prepare_data.py verify data/pcam
python scripts/prepare_data.py audit data/pcam --output audit
python scripts/prepare_data.py synthesize --out data/synthetic --train 6000 --valid 1000 --test 1000 --seed 1
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pcam.cli import Arguments, front_door, run_subcommand
from pcam.data import PCamDataModule
from pcam.data.audit import audit as audit_patches
from pcam.data.download import download as download_files
from pcam.data.synthetic import write_class_folders
from pcam.data.verify import findings_table
from pcam.data.verify import verify as verify_files
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName


def download(*, root: Path, splits: Sequence[SplitName] = SPLIT_NAMES) -> None:
    """Fetch PatchCamelyon's official files from Zenodo, 8 GB in all; a transfer that broke goes on where it did.

    Args:
        root: The folder; made if it does not exist.
        splits: Which, in brackets: [train] is 6.4 GB, [valid] and [test] are 0.8 GB each.
    """
    download_files(root, splits)
    print(f"{', '.join(splits)} of PatchCamelyon are whole in {root}; train on them with --data.root {root}")


def verify(root: Path, cache_dir: Path | None = None) -> None:
    """Read every byte of a data set, and of its packed stores, and say whether it is what it should be.

    Ends with exit code 1 if something is not: an official file whose MD5 is wrong (or that of another split), an image
    of Kaggle's whose pixels are not what its name says, a patch that cannot be read, a packed store that has changed.

    Args:
        root: Folder with the data, in any form.
        cache_dir: Folder with the packed stores; null is the user's cache folder.
    """
    findings = verify_files(PCamDataModule(root, cache_dir=cache_dir))
    Console().print(findings_table(findings))
    faults = [finding.subject for finding in findings if finding.fault is not None]
    if faults:
        raise UserError(
            f"Expected all of {root} and its packed stores to be right, but found {len(faults)} of "
            f"{len(findings)} parts wrong, the first {faults[0]}; the table says what to do."
        )


def audit(root: Path, output: Path = Path("audit"), cache_dir: Path | None = None) -> None:
    """Look for repeated patches, leaks between splits, conflicting labels and empty patches.

    Ends with exit code 1 if patches of train, or copies of them, are in valid or test.

    Args:
        root: Folder with the data, in any form.
        output: Folder for `audit.json` and `contact_sheet.png`; not below `root`, which stays untouched.
        cache_dir: Folder for the packed stores; null is the user's cache folder.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise UserError(f"Expected a folder outside {root} for the audit, but found {output}; set --output.")
    found = audit_patches(PCamDataModule(root, cache_dir=cache_dir))
    console = Console()
    for table in found.tables():
        console.print(table)
    found.write(output)
    print(f"Wrote {output / 'audit.json'} and {output / 'contact_sheet.png'}")
    leak = found.leak()
    if leak is not None:
        raise UserError(
            f"Expected no patch of train in valid or test of {root}, but found {leak}; see {output}, and do not trust "
            f"a number measured on these splits."
        )


def synthesize(*, out: Path, train: int = 6000, valid: int = 1000, test: int = 1000, seed: int = 1) -> None:
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
    run_subcommand(
        "Prepare PatchCamelyon's patches, or patches like them.",
        {"download": download, "verify": verify, "audit": audit, "synthesize": synthesize},
        args,
    )


if __name__ == "__main__":
    main()
