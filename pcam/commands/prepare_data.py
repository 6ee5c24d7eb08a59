"""Fetch, check and pack PatchCamelyon's patches, or make synthetic ones like them."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from pcam.atomic import expanded
from pcam.door import Arguments, front_door, run_subcommand
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName
from pcam.outputs import JSON, PNG, check_output


def download(root: Path, splits: Sequence[SplitName] = SPLIT_NAMES) -> None:
    """Download PatchCamelyon's official files from Zenodo, 8 GB in all.

    A transfer that was interrupted continues where it stopped. A file is checked before it gets its name, and one that
    is there already is only checked.

    Args:
        root: Folder for the files; made if it does not exist.
        splits: The splits to download, in brackets: [train] is 6.4 GB, [valid] and [test] are 0.8 GB each.

    Raises:
        UserError: If the files cannot be downloaded, or the disk has no room for them.
    """
    from pcam.data.download import download as download_files

    download_files(root, splits)
    print(f"The official files of {', '.join(splits)} are complete in {root}. {_how_to_train(root)}")


def verify(root: Path, cache_dir: Path | None = None) -> None:
    """Read every byte of a data set, and of its packed stores, and say whether all of it is what it should be.

    Ends with exit code 1 if something is not: an official file whose MD5 is wrong or is that of another split, an image
    of Kaggle's whose pixels differ from what its name says, a patch that cannot be read, or a packed store that has
    changed.

    Args:
        root: Folder with the data, in any form.
        cache_dir: Folder with the packed stores; null is the user's cache folder.

    Raises:
        UserError: If something is wrong.
    """
    from rich.console import Console

    from pcam.data import PCamDataModule
    from pcam.data.verify import findings_table
    from pcam.data.verify import verify as verify_files

    findings = verify_files(PCamDataModule(root, cache_dir=cache_dir))
    Console().print(findings_table(findings))
    faults = [finding.subject for finding in findings if finding.fault is not None]
    if faults:
        raise UserError(
            f"Expected all of {root} and its packed stores to be right, but found {len(faults)} of "
            f"{len(findings)} parts wrong, the first {faults[0]}; the table says what to do."
        )


def pack(root: Path, cache_dir: Path | None = None, deduplicate: bool = False) -> None:
    """Pack every split of a data set into the store that training reads, so that the first training need not.

    A split that is packed already is packed again only if its files have changed.

    Args:
        root: Folder with the data, in any form; nothing is written into it.
        cache_dir: Folder for the packed stores, 28 kB a patch; null is the user's cache folder.
        deduplicate: Whether to make the stores that training reads with --data.deduplicate true: without patches whose
            pixels repeat those of another in their split.

    Raises:
        UserError: If the data cannot be read, or the disk has no room for the stores.
    """
    from pcam.data import PCamDataModule
    from pcam.data.layouts import find_layout

    data = PCamDataModule(root, cache_dir=cache_dir, deduplicate=deduplicate)
    for split in find_layout(data.root).splits:
        store = data.packed(split)
        print(f"The {split} split has {len(store):,} patches, {store.labels.mean():.1%} of them tumour.")
        print(f"  store:       {store.path}")
        print(f"  fingerprint: {store.fingerprint}")
    options = [] if cache_dir is None else ["--data.cache_dir", str(cache_dir)]
    print(_how_to_train(root, *options, *(["--data.deduplicate", "true"] if deduplicate else [])))


def audit(roots: list[Path], output: Path = Path("audit"), cache_dir: Path | None = None) -> None:
    """Look for repeated patches, leaks between splits, conflicting labels and empty patches.

    Ends with exit code 1 if patches of train, or copies of them, are in valid or test. With several folders, the first
    is audited, and patches that are in another as well, pixel for pixel, are found.

    Args:
        roots: Folder with the data, in any form; then, if wanted, others.
        output: Folder for `audit.json` and `contact_sheet.png`. It must not be in one of `roots`, where nothing is
            written.
        cache_dir: Folder for the packed stores, 28 kB a patch; null is the user's cache folder.

    Raises:
        UserError: If patches of train are in valid or test, of the same folder or of another, or `output` is in one of
            `roots`.
    """
    root, *others = roots
    for place in roots:
        if output.resolve().is_relative_to(expanded(place, "roots").resolve()):
            raise UserError(f"Expected a folder outside {place} for the audit, but found {output}; set --output.")
    check_output(output / "audit.json", JSON)
    check_output(output / "contact_sheet.png", PNG)
    from rich.console import Console

    from pcam.data import PCamDataModule
    from pcam.data.audit import audit as audit_patches
    from pcam.data.shared_pixels import leaks, shared_pixels, shared_table

    data = PCamDataModule(root, cache_dir=cache_dir)
    found = audit_patches(data)
    elsewhere = shared_pixels([data, *(PCamDataModule(other, cache_dir=cache_dir) for other in others)])
    console = Console()
    for table in [*found.tables(), *([shared_table(elsewhere)] if others else [])]:
        console.print(table)
    found.write(output, elsewhere)
    print(f"Wrote {output / 'audit.json'} and {output / 'contact_sheet.png'}.")
    leak, leak_elsewhere = found.leak(), leaks(elsewhere)
    if leak_elsewhere is not None:
        raise UserError(
            f"Expected no patch of one folder's train in another's valid or test, but found {leak_elsewhere}; see "
            f"{output}, and do not measure there what is trained on these."
        )
    if leak is not None:
        raise UserError(
            f"Expected no patch of train in valid or test of {root}, but found {leak}; see {output}, and do not trust "
            f"a number measured on these splits."
        )


def synthesize(
    *, output: Path = Path("data/synthetic"), train: int = 6000, valid: int = 1000, test: int = 1000, seed: int = 1
) -> None:
    """Write synthetic patches that look like H&E and follow PatchCamelyon's label rule, as class folders of PNG files.

    Args:
        output: Folder for the patches; it must be new or empty.
        train: Number of patches in the train split, half of each class; at least 2.
        valid: Number of patches in the valid split, half of each class; at least 2.
        test: Number of patches in the test split, half of each class; at least 2.
        seed: Seed of everything that is random, at least 0: the same seed gives the same patches.

    Raises:
        UserError: If the folder is not empty, or a number is too small.
    """
    from pcam.data.synthetic import write_class_folders

    write_class_folders(output, {"train": train, "valid": valid, "test": test}, seed)
    print(f"Wrote {train + valid + test:,} patches to {output}. {_how_to_train(output)}")


def cut(
    slides: list[Path],
    truth: Path,
    output: Path,
    split: SplitName = "train",
    balanced: bool = False,
    per_slide: PositiveInt = 1000,
    mpp: PositiveFloat | None = None,
    seed: NonNegativeInt = 1,
) -> None:
    """Cut labelled patches of 96x96 pixels at 0.972 um from annotated slides, by PatchCamelyon's rules.

    A patch is tumour if a pixel of its centre 32x32 is; windows without tissue are left out; no pixel is in two
    patches. Name other slides for each split.

    Args:
        slides: The slides, or folders of slides.
        truth: What is tumour: a folder of ASAP's XML, GeoJSON or masks that are named as the slides are, or one file
            for one slide. A slide that the folder has no file for is normal.
        output: The folder of the data set; `<split>/{0,1}` in it must be new or empty. Beside them, patches.csv says
            the slide and the place of each patch.
        split: The split that the patches are for.
        balanced: Keep as many patches of one class as of the other; without it they are as they come.
        per_slide: The number of patches that are cut from a slide at most, at random places: of each class if they are
            to be balanced, else of both together.
        mpp: The micrometres per pixel of the slides, 0.01 to 10, instead of those that their files say.
        seed: The seed of every draw, at least 0: the same seed gives the same patches.

    Raises:
        UserError: If a slide or its truth cannot be read, or a class has no patch.
    """
    from pcam.slides.cutting import cut_slides
    from pcam.slides.many import find_slides, find_truths

    found = find_truths(truth, find_slides(slides, output))
    normal, tumour = cut_slides(found, output / split, balanced=balanced, per_slide=per_slide, mpp=mpp, seed=seed)
    print(
        f"Cut {normal:,} normal patches and {tumour:,} with tumour from {len(found):,} slides: {output / split}. "
        f"{_how_to_train(output)}"
    )


def _how_to_train(root: Path, *options: str) -> str:
    return f"Train on them with {shlex.join(['--data.root', str(root), *options])}"


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "download": download,
    "verify": verify,
    "pack": pack,
    "audit": audit,
    "synthesize": synthesize,
    "cut": cut,
}
"""The functions of this module that are commands, by name."""

SPELLED: Final[Mapping[str, Mapping[str, str]]] = {
    "audit": {"roots": "ROOT"},
    "cut": {"slides": "SLIDE", "truth": "--truth", "output": "--output"},
}
"""Parameters of commands whose options are spelled differently from their names."""


@front_door
def main(args: Arguments = None) -> None:
    """Run one of the data commands.

    Args:
        args: The command line; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else [str(word) for word in args]
    run_subcommand(
        "Prepare PatchCamelyon's patches, or synthetic patches like them.", COMMANDS, _with_place(words), SPELLED
    )


def _with_place(words: Sequence[str]) -> list[str]:
    """Turn the old spelling `download --root DIR` into `download DIR`."""
    if list(words[:1]) != ["download"]:
        return list(words)
    return [word.removeprefix("--root=") for word in words if word != "--root"]
