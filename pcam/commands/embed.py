"""Compute the embeddings of patches by a frozen network, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcam.commands.networks import build_network
from pcam.door import Arguments, front_door
from pcam.options import Dtype, Precision, SplitName

if TYPE_CHECKING:
    from pcam.probe.store import EmbeddedSplit


@dataclass(frozen=True)
class EmbedOptions:
    """What is embedded, and how.

    Args:
        splits: The splits that are embedded. The test split is read only if you ask for it.
        dtype: What embeddings are stored in; float16 takes half the space, and leaves three digits.
        tta: Average the embeddings of the eight symmetries of the square (test-time augmentation), at eight times the
            cost. Probes do not use these.
        precision: "32-true", or "bf16-mixed" to compute in bfloat16, which is meant for GPUs.
    """

    splits: Sequence[SplitName] = ("train", "valid")
    dtype: Dtype = "float32"
    tta: bool = False
    precision: Precision = "32-true"


def embed(args: Arguments) -> "dict[SplitName, EmbeddedSplit]":
    """Compute the embeddings of patches by a frozen network, once, and print where they are.

    The embeddings of a split are a NumPy array of shape (patches, features), in the order of the packed store, beside
    it in the cache folder. An interrupted job goes on where it was, and what is there is not computed again. The name
    of the file changes with the weights, the patches, and how patches enter the network. Every patch of a split is
    embedded: --data.train_patches and --data.train_slides choose what a probe learns from, and change nothing here.

    Args:
        args: The words of a command line, as in `["--data.root", "data/pcam", "--model.network",
            "pcam.models.TimmNetwork", "--model.network.name", "resnet18", "--model.network.weights", "resnet18.pth"]`.

    Returns:
        The embeddings of each split.

    Raises:
        UserError: If the data or the network cannot be used.
    """
    built = build_network(embed, EmbedOptions, args)
    from pcam.device import find_device
    from pcam.probe.store import Embedding

    options = built.options
    embedding = Embedding(
        built.network, built.data, find_device(), dtype=options.dtype, tta=options.tta, precision=options.precision
    )
    found = {split: embedding.open(split) for split in options.splits}
    for split, embedded in found.items():
        patches, features = embedded.matrix.shape
        print(f"{split}: {patches:,} patches, {features:,} values each: {embedded.path}")
    return found


@front_door
def main(args: Arguments = None) -> None:
    """Compute the embeddings of patches.

    Args:
        args: The command line; None takes the process's own.
    """
    embed(args)
