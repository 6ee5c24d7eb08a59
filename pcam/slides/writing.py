"""The files that are written of each slide, and the table of all."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.outputs import JSON, PNG, TIFF, Kind, check_output
from pcam.slides.pictures import map_figure, top_figure
from pcam.slides.scores import ScoreMap, SlideScores
from pcam.slides.slide import Slide

FILES: Final[Mapping[str, Kind]] = {
    "scores.tif": TIFF, "map.png": PNG, "top.png": PNG, "scores.geojson": JSON, "regions.geojson": JSON,
    "slide.json": JSON,
}  # fmt: skip
"""What the folder of a slide holds."""

TILE: Final = 256
"""The side of the tiles of a map, in its pixels."""


def check_files(folder: Path, slide: Path) -> None:
    """Refuse to write where something else would be lost; see `pcam.outputs`."""
    for name, kind in FILES.items():
        check_output(folder / name, kind, [slide])


def write_slide(scores: SlideScores, slide: Slide, folder: Path, key: Mapping[str, Any]) -> None:
    """Write all files of a slide; each is whole or not there, and `slide.json` is the last.

    Args:
        scores: The scores.
        slide: The slide.
        folder: The folder of the slide.
        key: What the scores depend on, which `slide.json` records.

    Raises:
        UserError: If the slide cannot be read any more.
    """
    with ExitStack() as stack:
        tiff, overview, top, squares, regions = (
            stack.enter_context(atomic_path(folder / name)) for name in list(FILES)[:-1]
        )
        _write_tiff(scores, tiff)
        map_figure(scores).savefig(overview, format="png", dpi=150, bbox_inches="tight")
        top_figure(scores, slide).savefig(top, format="png", dpi=100)
        squares.write_text(json.dumps(scores.to_geojson("squares")) + "\n", encoding="utf-8")
        regions.write_text(json.dumps(scores.to_geojson("regions")) + "\n", encoding="utf-8")
    record = {
        "slide": str(scores.slide),
        **scores.summary(),
        "micrometres_per_pixel": [slide.resolution.across, slide.resolution.down],
        "micrometres_per_square": scores.resolution,
        "resolution_source": slide.resolution.source,
        "objective_power": slide.reader.objective_power,
        "offset": scores.offset,
        "pixels_per_square": scores.square,
        "key": key,
    }
    with atomic_path(folder / "slide.json") as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def written_row(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the numbers of a slide whose files are written already.

    Args:
        folder: The folder of the slide.
        key: What its scores depend on.

    Returns:
        What `summary_row` gives; None if files are missing, or are of another key.
    """
    if not all((folder / name).is_file() for name in FILES):
        return None
    try:
        record = json.loads((folder / "slide.json").read_text(encoding="utf-8"))
        if record["key"] != json.loads(json.dumps(key)):
            return None
        names = list(record)
        return {name: record[name] for name in names[: names.index("seconds") + 1]}
    except (ValueError, KeyError, TypeError):
        return None


def read_map(folder: Path) -> ScoreMap:
    """Read the scores of a slide from its `scores.tif`."""
    pyvips = import_extra("pyvips", "slides")
    try:
        scores: ScoreMap = pyvips.Image.tiffload(str(folder / "scores.tif")).numpy()
    except pyvips.Error as error:
        raise UserError(
            f"Expected the map of a slide at {folder / 'scores.tif'}, but it cannot be read; remove {folder}, and "
            f"score the slide again."
        ) from error
    return scores


def write_table(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the table of slides, one row each."""
    found: Sequence[Mapping[str, Any]] = list(rows)
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in found for name in row)) or ["slide"])
        table.writeheader()
        table.writerows(found)


def _write_tiff(scores: SlideScores, path: Path) -> None:
    """Write a map as a tiled, pyramidal TIFF of floats that lies over the slide by its resolution and position."""
    pyvips = import_extra("pyvips", "slides")
    across, down = (1000 / side for side in scores.resolution)  # pixels per millimetre
    image = pyvips.Image.new_from_array(np.ascontiguousarray(scores.map)).copy(
        xres=across,
        yres=down,
        # In pixels of the map; the TIFF has it as XPosition and YPosition.
        xoffset=round(scores.offset[0] / scores.square[0]),
        yoffset=round(scores.offset[1] / scores.square[1]),
    )
    image.tiffsave(
        str(path), tile=True, pyramid=True, tile_width=TILE, tile_height=TILE, compression="deflate", resunit="cm",
        region_shrink="nearest",  # a mean would spread the squares without a score
    )  # fmt: skip
