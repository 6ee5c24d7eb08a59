"""The same patches in every form PatchCamelyon comes in, written as it is found on disk."""

import gzip
import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from pcam.data.stain import scale_stains
from pcam.options import SplitName
from pcam.patches import PatchArray

Patches = Mapping[SplitName, tuple[PatchArray, NDArray[np.uint8]]]
"""Patches and labels of each split."""

COUNTS: dict[SplitName, tuple[int, int]] = {"train": (23, 18), "valid": (7, 5), "test": (4, 3)}
"""Patches of class 0 and 1 a split; all differ, so that a swap of splits or classes cannot pass."""

STEM = "camelyonpatch_level_2_split"


def noise(counts: Mapping[SplitName, tuple[int, int]] = COUNTS, seed: int = 0) -> Patches:
    """Patches of noise, mixed; the last of train repeats the first."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, (negatives, positives) in counts.items():
        labels = rng.permutation([0] * negatives + [1] * positives).astype(np.uint8)
        patches = rng.integers(256, size=(len(labels), 96, 96, 3), dtype=np.uint8)
        if split == "train":
            patches[-1], labels[-1] = patches[0], labels[0]
        splits[split] = patches, labels
    return splits


def slides_of(labels: NDArray[np.uint8]) -> list[str]:
    """A slide for each of some patches: eight in all."""
    return [f"camelyon16_train_tumor_{index * 8 // len(labels):03d}" for index in range(len(labels))]


def write_classes(root: Path, patches: Patches) -> None:
    for split, (images, labels) in patches.items():
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"patch{index:07d}.png", compress_level=0)


def write_course(root: Path, patches: Patches) -> None:
    write_classes(root / "train+val", {split: patches[split] for split in ("train", "valid")})
    (root / "test").mkdir()
    for index, image in enumerate(patches["test"][0]):
        Image.fromarray(image).save(root / "test" / f"{index}.tif")


def write_official(root: Path, patches: Patches, meta: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in patches.items():
        with h5py.File(root / f"{STEM}_{split}_x.h5", "w") as file:
            file["x"] = images
        with h5py.File(root / f"{STEM}_{split}_y.h5", "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1)
        if meta:
            table = pd.DataFrame({"coord_y": 5, "coord_x": 7, "tumor_patch": True, "center_tumor_patch": labels == 1})
            table.assign(wsi=slides_of(labels)).to_csv(root / f"{STEM}_{split}_meta.csv")


def write_official_with_meta(root: Path, patches: Patches) -> None:
    write_official(root, patches, meta=True)


def write_official_packed(root: Path, patches: Patches) -> None:
    write_official(root, patches)
    for path in root.glob("*.h5"):
        with path.open("rb") as file, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
            shutil.copyfileobj(file, packed)
        path.unlink()


def write_parquet(root: Path, patches: Patches) -> None:
    """As the Hugging Face hub has it: two files of train, one of each other split, with structs for images."""
    (root / "data").mkdir(parents=True)
    for split, (images, labels) in patches.items():
        rows = [
            {"image": {"bytes": encode(image), "path": None}, "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        parts = 2 if split == "train" else 1
        for part in range(parts):
            name = f"{'validation' if split == 'valid' else split}-{part:05d}-of-{parts:05d}.parquet"
            half = -(-len(rows) // parts)
            pd.DataFrame(rows[part * half : (part + 1) * half]).to_parquet(root / "data" / name, row_group_size=7)


HOSPITAL_STAINS = {0: (1.0, 1.0), 1: (1.3, 1.0), 2: (0.7, 1.2), 3: (1.0, 0.7), 4: (0.8, 0.8)}
"""How much haematoxylin and eosin each hospital of Camelyon17 uses here, compared with what the patches have."""


def camelyon17_table(labels: NDArray[np.uint8]) -> pd.DataFrame:
    """Rows of WILDS's metadata.csv: the hospitals take turns, each has two patients with a slide, and of hospitals 0, 3
    and 4 every fourth patch is of id_val."""
    index = np.arange(len(labels))
    center, turn = index % 5, index // 5
    patient, node = 20 * center + turn % 2, turn % 2 + 1
    return pd.DataFrame(
        {
            "patient": [f"{number:03d}" for number in patient], "node": node, "x_coord": 96 * index, "y_coord": 7,
            "tumor": labels, "slide": 2 * center + turn % 2, "center": center, "split": (turn % 4 == 3).astype(int),
        }
    )  # fmt: skip


def camelyon17_images(images: PatchArray, table: pd.DataFrame) -> list[Image.Image]:
    """The patches as the hospitals would have stained them, with an alpha channel, as WILDS has them."""
    factors = torch.tensor([(*HOSPITAL_STAINS[center], 1.0) for center in table["center"]])
    stained = scale_stains(torch.from_numpy(images).permute(0, 3, 1, 2), factors).round().to(torch.uint8)
    return [Image.fromarray(image).convert("RGBA") for image in stained.permute(0, 2, 3, 1).numpy()]


def write_camelyon17(root: Path, images: PatchArray, labels: NDArray[np.uint8]) -> pd.DataFrame:
    """As WILDS unpacks it; returns the table, with the name of each file."""
    table = camelyon17_table(labels)
    base = root / "camelyon17_v1.0"
    base.mkdir(parents=True)
    (base / "RELEASE_v1.0.txt").write_text("")
    table.to_csv(base / "metadata.csv")
    slides = [f"patient_{patient}_node_{node}" for patient, node in zip(table["patient"], table["node"], strict=True)]
    names = [f"{slide}/patch_{slide}_x_{x}_y_7.png" for slide, x in zip(slides, table["x_coord"], strict=True)]
    for image, name in zip(camelyon17_images(images, table), names, strict=True):
        (base / "patches" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(base / "patches" / name, compress_level=0)
    return table.assign(name=names)


def write_camelyon17_parquet(root: Path, images: PatchArray, labels: NDArray[np.uint8]) -> pd.DataFrame:
    """As the mirror on the Hugging Face hub has it, whose validation mixes id_val and hospital 1."""
    table = camelyon17_table(labels)
    rows = table.rename(columns={"tumor": "label"}).assign(
        patient=table["patient"].astype(int),
        image=[{"bytes": encode(np.asarray(image)), "path": None} for image in camelyon17_images(images, table)],
    )
    held = (table["center"] == 1) | ((table["split"] == 1) & (table["center"] != 2))
    (root / "data").mkdir(parents=True)
    columns = ["image", "label", "center", "patient", "node", "slide"]
    for name, of_file in {"validation": held, "test": table["center"] == 2}.items():
        rows.loc[of_file, columns].to_parquet(root / "data" / f"{name}-00000-of-00001.parquet", row_group_size=7)
    train = rows.loc[~held & (table["center"] != 2), columns]
    for part, of_part in enumerate((train[:9], train[9:])):
        of_part.to_parquet(root / "data" / f"train-{part:05d}-of-00002.parquet", row_group_size=4)
    return table


def encode(image: NDArray[np.uint8], image_format: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format)
    return buffer.getvalue()


def kaggle_id(image: NDArray[np.uint8]) -> str:
    return hashlib.sha1(image.tobytes()).hexdigest()


def write_kaggle(root: Path, patches: Patches) -> None:
    """Train with labels and test without; Kaggle has no repeats, so of each only the first is written."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for image in patches[split][0]:
            Image.fromarray(image).save(root / split / f"{kaggle_id(image)}.tif")
    images, labels = patches["train"]
    rows = {kaggle_id(image): label for image, label in zip(images, labels, strict=True)}
    pd.DataFrame(rows.items(), columns=["id", "label"]).to_csv(root / "train_labels.csv", index=False)
    pd.DataFrame({"id": [kaggle_id(image) for image in patches["test"][0]], "label": 0}).to_csv(
        root / "sample_submission.csv", index=False
    )


WRITERS: dict[str, Callable[[Path, Patches], None]] = {
    "classes": write_classes,
    "course": write_course,
    "official": write_official,
    "official_with_meta": write_official_with_meta,
    "official_packed": write_official_packed,
    "parquet": write_parquet,
}
"""The forms that have a valid split of their own."""
