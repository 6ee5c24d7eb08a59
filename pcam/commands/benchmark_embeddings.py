"""The benchmarks of embeddings: how fast they are computed, and how fast a probe learns from them."""

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from pcam.benchmark.options import SYNTHETIC, MeasuredPatches
from pcam.errors import UserError
from pcam.options import Dtype, Precision

if TYPE_CHECKING:
    from pcam.benchmark.race import Contestant


def benchmark_embed(
    data: MeasuredPatches = SYNTHETIC,
    name: str | None = None,
    image_size: PositiveInt | None = None,
    batch_size: PositiveInt = 32,
    precision: Precision = "32-true",
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_embed.json"),
) -> None:
    """Measure how fast the valid split is embedded, on whatever device there is.

    Compares the command embed, from the packed store to a file that is whole, with the ceiling: its network on patches
    that lie in the device's memory; and on a CPU where OpenVINO computes, with the ceiling of PyTorch too. Weights are
    random ones; each round is the whole split. Processor seconds are for a machine that others use too.

    Args:
        data: The patches that are measured on.
        name: A network of timm, or a preset, by its name; null is MobileNetV2.
        image_size: Side in pixels that patches are enlarged to, for a network of timm; null is the network's own.
        batch_size: Number of patches in a batch, at least 1.
        precision: "32-true" (float32), or "bf16-mixed" to compute in bfloat16.
        rounds: Number of rounds that count, at least 1, after one that does not.
        output: JSON file for the results.

    Raises:
        UserError: If MobileNetV2 is to see another size than 96 pixels.
    """
    from pcam.benchmark.embeddings import EmbeddingWork, embed_ours, embed_resident
    from pcam.benchmark.patches import open_patches
    from pcam.benchmark.race import race
    from pcam.benchmark.results import report_race
    from pcam.device import find_device

    if name is None and image_size is not None:
        raise UserError(f"Expected name, a network of timm, with an image_size of {image_size}, but found none.")
    with open_patches(data.root, data.cache_dir) as (found, folder):
        found.prepare_data()
        work = EmbeddingWork(found.root, found.cache_dir, name, image_size, batch_size, precision, rounds)
        contestants: dict[str, Contestant] = {
            "ours": partial(embed_ours, work),
            "ceiling": partial(embed_resident, work, True),
        }
        device = find_device()
        if device.type == "cpu" and find_spec("openvino") is not None and precision == "32-true":
            contestants["ceiling, PyTorch"] = partial(embed_resident, work, False)
        turns = race(contestants, rounds, device, folder)
    report_race(f"Embeddings of {name or 'MobileNetV2'}, batches of {batch_size}", turns, output)


def benchmark_probe(
    patches: PositiveInt = 262_144,
    features: PositiveInt = 1536,
    dtype: Dtype = "float32",
    rounds: PositiveInt = 1,
    output: Path = Path("benchmark_probe.json"),
) -> None:
    """Measure how long a probe takes to learn by L-BFGS, and in how much memory.

    The embeddings are made up, correlated as those of networks are, and lie in a temporary folder: 1.8 GB with the
    defaults. The time is that of all strengths of the penalty together.

    Args:
        patches: Number of training patches, at least 16; valid has an eighth of them.
        features: Number of values of an embedding, at least 1.
        dtype: What embeddings are stored in.
        rounds: Number of rounds, at least 1.
        output: JSON file for the results.

    Raises:
        UserError: If there are too few patches for both classes in valid.
    """
    import torch

    from pcam.benchmark.embeddings import fit_probe
    from pcam.benchmark.race import race
    from pcam.benchmark.results import report_race

    if patches < 16:
        raise UserError(f"Expected at least 16 patches, an eighth of them in valid, but found {patches}; raise it.")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        contestant = partial(fit_probe, place, patches, features, dtype, rounds)
        turns = race({"L-BFGS": contestant}, rounds, torch.device("cpu"), place)
    report_race(f"A probe of {patches:,} embeddings of {features:,} values", turns, output)
