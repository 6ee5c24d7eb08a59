"""Whether the files of a data set are what they should be, and its packed stores what was packed."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from pcam.data.datamodule import PCamDataModule
from pcam.data.layouts import Layout, find_layout
from pcam.data.layouts.findings import Finding, balance
from pcam.data.packed import PackedSplit
from pcam.errors import UserError
from pcam.terminal import printable

__all__ = ["Finding", "findings_table", "verify"]


def verify(data: PCamDataModule) -> list[Finding]:
    """Read every byte of a data set, and of its packed stores if there are any.

    Each form knows what can be compared: official files have a published MD5, and Kaggle's images have the hash of
    their pixels as a name. Of other forms every patch is decoded.

    Args:
        data: The data set.

    Returns:
        What was found of each part.

    Raises:
        UserError: If there is no data set, or its files do not fit together.
    """
    layout = find_layout(data.root)
    return [*layout.form.verify(layout.root), *_verify_stores(data, layout)]


def findings_table(findings: Sequence[Finding]) -> Table:
    """Put findings into a table.

    Args:
        findings: What `verify` returned.

    Returns:
        A table with a row for each, to be printed.
    """
    rows = Table()
    for heading in ("", "found", "verdict"):
        rows.add_column(heading, overflow="fold")  # paths and hashes are of no use without their end
    for finding in findings:
        words = (finding.subject, finding.found, finding.fault or "right")
        rows.add_row(*(Text(printable(text)) for text in words))  # not as markup, which a path may look like
    return rows


def _verify_stores(data: PCamDataModule, layout: Layout) -> Iterator[Finding]:
    for deduplicate in (False, True):
        cache = PCamDataModule(data.root, cache_dir=data.cache_dir, deduplicate=deduplicate)
        for split in layout.splits:
            path = cache.store_path(split)
            if path.exists():
                found, fault = "a packed store", None
                try:
                    store = PackedSplit(path)
                    found = f"packed: {balance(store.labels)}"
                    if not store.is_of(layout.split(split), deduplicate):
                        found += "; the files have changed since, and the next run packs them again"
                    store.verify()
                except UserError as error:
                    fault = str(error)
                yield Finding(str(path), found, fault)
