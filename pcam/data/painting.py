"""One made-up H&E patch: tissue, cells and stain, painted from random numbers.

A patch is painted in optical density: stroma and cytoplasm in eosin, nuclei in haematoxylin, then light through both.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d

from pcam.patches import CENTRE_START, CENTRE_STOP, MICROMETRES_PER_PIXEL, PATCH_SIZE

LYMPHOCYTE_RADIUS: Final = 7 / 2 / MICROMETRES_PER_PIXEL
"""In pixels: a lymphocyte's nucleus, the yardstick of a lymph node, is 7 um across."""

LABORATORIES: Final = np.array(
    [
        [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]],
        [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]],
    ],
    dtype=np.float32,
)
"""Optical density in R, G, B of haematoxylin and of eosin, twice; every patch is stained between these two.

Source: Ruifrok & Johnston 2001, "Quantification of histochemical staining by color deconvolution" (bluish, the
first pair); Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", the reference
pair of torchstain's implementation (brownish, the second pair).
"""

OUTSIDE: Final = 9
"""How many pixels outside the patch the middle of a cell can lie, so that the border cuts through cells."""

MARGIN: Final = 28
"""By how many pixels the canvas is wider than the patch on each side: `OUTSIDE` and the longest reach of a cell."""

CELL_TO_NUCLEUS: Final = 1.3
"""Radius of a tumour cell in radii of its nucleus."""

LN_10: Final = float(np.log(10))
"""Optical densities are decadic."""

MIDDLE: Final = (PATCH_SIZE - 1) / 2

Field = NDArray[np.float32]
"""One value per pixel, shape (96, 96), or per pixel of the canvas round it."""

Values = NDArray[np.float64]
"""One value per cell."""


@dataclass(frozen=True)
class Cells:
    """Cells of one kind; one value per cell.

    Attributes:
        rows: Row of the middle of the nucleus, in pixels of the patch.
        columns: Column of the middle of the nucleus, in pixels of the patch.
        radius: Radius of the nucleus in pixels: the geometric mean of its half axes.
        stretch: Length of its long half axis in radii, at least 1.
        angle: Direction of its long axis, in radians.
        lobes: Depth of the three dents in its outline, in radii.
        phase: Direction in which these dents and the nucleolus lie, in radians.
        haematoxylin: Amount of haematoxylin in the rim of the nucleus.
        clearing: Share of the haematoxylin that is missing inside the rim: 0 for a solid nucleus, 1 for an empty one.
        nucleolus: Amount of haematoxylin in the nucleolus.
    """

    rows: Values
    columns: Values
    radius: Values
    stretch: Values
    angle: Values
    lobes: Values
    phase: Values
    haematoxylin: Values
    clearing: Values
    nucleolus: Values

    def keep(self, which: NDArray[np.bool_]) -> "Cells":
        """Take the cells that are marked True."""
        return Cells(*(getattr(self, field.name)[which] for field in fields(self)))

    def in_centre(self) -> NDArray[np.bool_]:
        """Mark the nuclei whose middle lies in the centre of the patch."""
        inside: NDArray[np.bool_] = self.distance_to_centre() == 0
        return inside

    def distance_to_centre(self) -> Values:
        """Measure how far the middle of each nucleus lies outside the centre, in pixels; 0 for those inside."""
        down = np.maximum(np.maximum(CENTRE_START - self.rows, self.rows - (CENTRE_STOP - 1)), 0)
        across = np.maximum(np.maximum(CENTRE_START - self.columns, self.columns - (CENTRE_STOP - 1)), 0)
        distance: Values = np.hypot(down, across)
        return distance

    def reach(self) -> Values:
        """Give how far each cell, if it is a tumour cell, reaches from its middle with its cytoplasm, in pixels."""
        return self.radius * self.stretch * (1 + self.lobes) * CELL_TO_NUCLEUS + 2

    def sample(self, field: Field) -> Values:
        """Look up the value of a field at the middle of each nucleus, or at the nearest pixel of the patch."""
        rows = np.clip(np.rint(self.rows), 0, PATCH_SIZE - 1).astype(np.intp)
        columns = np.clip(np.rint(self.columns), 0, PATCH_SIZE - 1).astype(np.intp)
        return field[rows, columns].astype(np.float64)

    def crowded_by(self, others: "Cells") -> NDArray[np.bool_]:
        """Mark the nuclei that overlap one of some other cells."""
        distance = np.hypot(self.rows[:, None] - others.rows, self.columns[:, None] - others.columns)
        overlaps: NDArray[np.bool_] = distance < 0.8 * self.radius[:, None] + 1.1 * others.radius
        return np.asarray(overlaps.any(axis=1))


def draw_patch(generator: np.random.Generator, label: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one patch.

    Every random number is drawn before the label is looked at, so the two patches that a generator's state can give
    differ only where the centre's tumour cells lie, at most 20 pixels outside the centre.

    Args:
        generator: Where all randomness comes from.
        label: 1 puts tumour cells into the centre.

    Returns:
        The patch, shape (96, 96, 3), and which pixels belong to a tumour cell, shape (96, 96).
    """
    uniform = generator.uniform
    tissue = _draw_tissue(generator)
    region = _smooth_noise(generator, 3)
    grain = _smooth_noise(generator, 44)
    fibre_angle = uniform(0, np.pi)

    # What is where: stroma from nowhere to everywhere, tumour in the ring likewise, ordinary cells in the rest.
    stroma = _step(region - uniform(-1.0, 2.0), 0.6)
    tumour_region = _smooth_noise(generator, 3) - uniform(-1.0, 2.0)
    lymphocytes = _draw_lymphocytes(generator)
    lymphocyte_density = uniform(0.7, 1.0) * (1 - lymphocytes.sample(stroma) * uniform(0.7, 1.0))
    lymphocytes = lymphocytes.keep(
        (uniform(size=len(lymphocytes.rows)) < lymphocyte_density) & (lymphocytes.sample(tissue) > 0.5)
    )
    spindles = _draw_spindles(generator, fibre_angle)
    spindles = spindles.keep(
        (uniform(size=len(spindles.rows)) < 0.7 * spindles.sample(stroma)) & (spindles.sample(tissue) > 0.5)
    )
    tumour = _draw_tumour(generator)
    in_ring = (
        (tumour.distance_to_centre() > tumour.reach())
        & (tumour.sample(tissue) > 0.5)
        & (tumour.sample(tumour_region) > 0)
    )
    in_centre = tumour.in_centre() & _cut(generator, tumour) & (tumour.sample(tissue) > 0.5)
    nearest = np.argmin(np.hypot(tumour.rows - MIDDLE, tumour.columns - MIDDLE))
    in_centre[nearest] = True  # class 1 has at least this one
    stain, illumination = _draw_stain(generator)
    fibres = _draw_fibres(generator, fibre_angle)
    eosin_amount, haze = uniform(0.1, 0.4), uniform(0.03, 0.15)
    cytoplasm_amount = uniform(0.8, 1.3) * eosin_amount
    nuclear_amount, clumping, tumour_clumping = uniform(0.75, 1.25), uniform(0.15, 0.3), uniform(0, 0.2)
    blur = uniform(0.3, 0.65)
    noise = (generator.random((PATCH_SIZE, PATCH_SIZE, 3), dtype=np.float32) - 0.5) * uniform(3, 14)

    in_centre &= label == 1
    ring_tumour, centre_tumour = tumour.keep(in_ring), tumour.keep(in_centre)
    nuclei = np.zeros((PATCH_SIZE + 2 * MARGIN,) * 2, dtype=np.float32)
    cytoplasm = np.zeros_like(nuclei)
    for cells in (lymphocytes, spindles):
        crowded = cells.crowded_by(ring_tumour) | (cells.in_centre() & cells.crowded_by(centre_tumour))
        _paint(nuclei, None, cells.keep(~crowded))
    _paint(nuclei, cytoplasm, tumour.keep(in_ring | in_centre))
    inner = slice(MARGIN, MARGIN + PATCH_SIZE)
    nuclei, cytoplasm = nuclei[inner, inner], cytoplasm[inner, inner]

    nuclei *= nuclear_amount * np.maximum(1 + (clumping + tumour_clumping * cytoplasm) * grain, 0.1)
    ground = eosin_amount * (stroma * (1 + 0.45 * fibres) + (1 - stroma) * (0.75 + 0.2 * fibres)) * (1 + 0.3 * grain)
    eosin = ground + cytoplasm * (cytoplasm_amount * (1 + 0.12 * grain) - ground)
    eosin = tissue * np.maximum(eosin, 0.02) * (1 - 0.3 * np.minimum(nuclei, 1))
    haematoxylin = np.maximum(nuclei, tissue * haze * (1 - 0.5 * stroma) * (1 + 0.4 * grain))
    stains = np.stack([_blur(haematoxylin, blur), _blur(eosin, blur)], axis=-1)
    patch = illumination * np.exp(stains @ (stain * -LN_10)) + noise  # Beer-Lambert
    return np.clip(np.rint(patch), 0, 255).astype(np.uint8), cytoplasm > 0


def _draw_tissue(generator: np.random.Generator) -> Field:
    """How much tissue there is at each pixel, 0 to 1: fat cells and clefts are empty, the middle never is."""
    rows, columns = _coordinates()
    tissue = np.ones((PATCH_SIZE, PATCH_SIZE), dtype=np.float32)
    for _ in range(generator.choice([0, 1, 2, 4], p=[0.65, 0.15, 0.1, 0.1])):
        radius = generator.uniform(9, 40)
        direction = generator.uniform(0, 2 * np.pi)
        offset = radius + generator.uniform(13, 40)
        distance = np.hypot(
            rows - np.float32(MIDDLE + offset * np.sin(direction)),
            columns - np.float32(MIDDLE + offset * np.cos(direction)),
        )
        tissue *= _step(distance - radius, 1.5)
    clefts = _smooth_noise(generator, 9)
    if generator.random() < 0.35:
        middle = np.exp(-(np.hypot(rows - MIDDLE, columns - MIDDLE) ** 2) / 300)
        tissue *= _step(clefts + 2 * middle + generator.uniform(0.6, 1.8), 0.5)
    return tissue


def _draw_lymphocytes(generator: np.random.Generator) -> Cells:
    """Small, round, dark nuclei, as dense as they can lie or looser."""
    rows, columns = _draw_lattice(generator, generator.uniform(7.2, 9.5), jitter=0.13)
    count = len(rows)
    uniform = generator.uniform
    return Cells(
        rows=rows,
        columns=columns,
        radius=LYMPHOCYTE_RADIUS * uniform(0.85, 1.05) * uniform(0.85, 1.15, count),
        stretch=uniform(1.0, 1.2, count),
        angle=uniform(0, np.pi, count),
        lobes=uniform(0, 0.1, count),
        phase=uniform(0, 2 * np.pi, count),
        haematoxylin=uniform(0.72, 1.12, count),
        clearing=uniform(0.05, 0.5) * uniform(0.3, 1, count),
        nucleolus=np.zeros(count),
    )


def _draw_spindles(generator: np.random.Generator, fibre_angle: float) -> Cells:
    """Slender nuclei of fibroblasts along the fibres."""
    rows, columns = _draw_lattice(generator, generator.uniform(11, 16), jitter=0.3)
    count = len(rows)
    uniform = generator.uniform
    return Cells(
        rows=rows,
        columns=columns,
        radius=uniform(2.3, 3.6, count),
        stretch=uniform(1.3, 2.0, count),
        angle=fibre_angle + 0.3 * generator.standard_normal(count),
        lobes=uniform(0, 0.1, count),
        phase=uniform(0, 2 * np.pi, count),
        haematoxylin=uniform(0.45, 1.0, count),
        clearing=uniform(0, 0.4, count),
        nucleolus=np.zeros(count),
    )


def _draw_tumour(generator: np.random.Generator) -> Cells:
    """Large, pale nuclei of uneven size, shape and chromatin; how much so differs from patch to patch."""
    uniform = generator.uniform
    size = uniform(1.4, 1.85)  # in radii of a lymphocyte
    rows, columns = _draw_lattice(generator, LYMPHOCYTE_RADIUS * size * uniform(2.4, 2.9), jitter=0.12)
    count = len(rows)
    return Cells(
        rows=rows,
        columns=columns,
        radius=LYMPHOCYTE_RADIUS * size * uniform(0.8, 1.2, count),
        stretch=uniform(1.0, 1.3, count),
        angle=uniform(0, np.pi) + 0.6 * generator.standard_normal(count),
        lobes=uniform(0, 0.15, count),
        phase=uniform(0, 2 * np.pi, count),
        haematoxylin=uniform(0.4, 0.75) * uniform(0.8, 1.2, count),
        clearing=uniform(0.35, 0.75) * uniform(0.7, 1.2, count),
        nucleolus=uniform(0, 0.8) * uniform(0, 1, count),
    )


def _draw_lattice(generator: np.random.Generator, spacing: float, jitter: float) -> tuple[Values, Values]:
    """Rows and columns of a hexagonal lattice, turned, shifted and shaken at random, in and just round the patch."""
    edge = MIDDLE + OUTSIDE
    last = np.ceil(edge * np.sqrt(2) / (spacing * np.sqrt(3) / 2)) + 1
    steps = np.arange(-last, last + 1)
    jitters = jitter * generator.standard_normal((2, len(steps), len(steps)))
    across = steps[None, :] + 0.5 * (steps[:, None] % 2) + jitters[0] + generator.uniform(0, 1)
    down = np.sqrt(3) / 2 * steps[:, None] + jitters[1] + generator.uniform(0, 1)
    angle = generator.uniform(0, 2 * np.pi)
    rows = MIDDLE + spacing * (np.sin(angle) * across + np.cos(angle) * down)
    columns = MIDDLE + spacing * (np.cos(angle) * across - np.sin(angle) * down)
    near = (np.abs(rows - MIDDLE) < edge) & (np.abs(columns - MIDDLE) < edge)
    return rows[near], columns[near]


def _cut(generator: np.random.Generator, cells: Cells) -> NDArray[np.bool_]:
    """Which cells lie on one side of a random straight line through the centre or beside it."""
    direction = generator.uniform(0, 2 * np.pi)
    along = (cells.rows - MIDDLE) * np.sin(direction) + (cells.columns - MIDDLE) * np.cos(direction)
    one_side: NDArray[np.bool_] = along < generator.uniform(4, 30)
    return one_side


def _draw_fibres(generator: np.random.Generator, angle: float) -> Field:
    """Wavy strands along an angle, about -1 to 1."""
    rows, columns = _coordinates()
    across = columns * np.float32(np.sin(angle)) - rows * np.float32(np.cos(angle))
    wavelength = generator.uniform(5, 11)
    phase = across * np.float32(2 * np.pi / wavelength) + 2.5 * _smooth_noise(generator, 6)
    fibres: Field = np.sin(phase) * _step(_smooth_noise(generator, 8), 2)
    return fibres


def _draw_stain(generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Optical densities of haematoxylin and eosin, shape (2, 3), and the light without tissue, shape (3,)."""
    blend = 0.25 + 0.75 * generator.beta(0.7, 0.7)  # slides come mostly from one laboratory or the other
    stain = (1 - blend) * LABORATORIES[0] + blend * LABORATORIES[1] + 0.04 * generator.standard_normal((2, 3))
    stain = np.maximum(stain, 0.02)
    stain /= np.linalg.norm(stain, axis=1, keepdims=True)
    stain *= generator.uniform(0.8, 1.3, size=(2, 1))
    illumination = generator.uniform(222, 248) + generator.uniform(-4, 4, size=3)
    return stain.astype(np.float32), illumination.astype(np.float32)


def _paint(nuclei: Field, cytoplasm: Field | None, cells: Cells) -> None:
    """Paint cells onto the canvas: haematoxylin of their nuclei and, if asked for, where their cytoplasm lies (0 to 1).

    Each cell is painted in a small window of its own; where cells overlap, the denser one is seen.
    """
    if len(cells.rows) == 0:
        return
    half = int(np.ceil((cells.radius * cells.stretch).max() * 1.1 + 1 if cytoplasm is None else cells.reach().max()))
    window = np.arange(-half, half + 1)
    top, left = np.floor(cells.rows).astype(np.intp), np.floor(cells.columns).astype(np.intp)
    down = (window - (cells.rows - top)[:, None]).astype(np.float32)[:, :, None]
    across = (window - (cells.columns - left)[:, None]).astype(np.float32)[:, None, :]

    def of_cell(values: Values) -> NDArray[np.float32]:
        return values.astype(np.float32)[:, None, None]

    # Coordinates in which the ellipse is a circle, and t the angle in them.
    cosine, sine = of_cell(np.cos(cells.angle)), of_cell(np.sin(cells.angle))
    along = across * (cosine / of_cell(cells.stretch)) + down * (sine / of_cell(cells.stretch))
    aside = down * (cosine * of_cell(cells.stretch)) - across * (sine * of_cell(cells.stretch))
    along_squared, aside_squared = along * along, aside * aside
    distance_squared = along_squared + aside_squared + np.float32(1e-3)
    distance = np.sqrt(distance_squared)
    radius = of_cell(cells.radius)
    lobes = radius * of_cell(cells.lobes)
    dents = of_cell(np.cos(cells.phase)) * lobes * along * (along_squared - 3 * aside_squared)  # cos(3 t) distance^3
    dents += of_cell(np.sin(cells.phase)) * lobes * aside * (3 * along_squared - aside_squared)  # sin(3 t) distance^3
    dents /= distance_squared * distance
    depth = radius + dents - distance
    interior = np.clip(depth * (1 / (0.45 * radius)), 0, 1)
    chromatin = of_cell(cells.haematoxylin) - of_cell(cells.haematoxylin * cells.clearing) * interior
    if cytoplasm is not None:
        off_centre = (along - 0.3 * radius * of_cell(np.cos(cells.phase))) ** 2
        off_centre += (aside - 0.3 * radius * of_cell(np.sin(cells.phase))) ** 2
        chromatin += of_cell(cells.nucleolus) * np.exp(off_centre * (-1 / 1.5))
    chromatin *= np.clip(depth * (1 / 1.2) + 0.5, 0, 1)  # a soft edge, 1.2 pixels wide
    places = ((top[:, None] + window + MARGIN) * nuclei.shape[1])[:, :, None]
    places = (places + (left[:, None] + window + MARGIN)[:, None, :]).ravel()
    np.maximum.at(nuclei.reshape(-1), places, chromatin.ravel())
    if cytoplasm is not None:
        extent = np.clip((depth + (CELL_TO_NUCLEUS - 1) * radius) * 0.5 + 0.5, 0, 1)
        np.maximum.at(cytoplasm.reshape(-1), places, extent.ravel())


def _step(values: Field, width: float) -> Field:
    """From 0 to 1 round the value 0."""
    step: Field = 0.5 + 0.5 * np.tanh(values * (2 / width))
    return step


def _blur(values: Field, sigma: float) -> Field:
    blurred: Field = gaussian_filter1d(gaussian_filter1d(values, sigma, axis=0), sigma, axis=1)
    return blurred


def _smooth_noise(generator: np.random.Generator, cells: int) -> Field:
    """Normal noise of mean 0 and variance 1 whose grain is `1 / cells` of the patch wide."""
    basis = _spline_basis(cells)
    size = basis.shape[1]
    knots = generator.standard_normal((size, size), dtype=np.float32)
    noise: Field = np.matmul(np.matmul(basis, knots), basis.T)
    return noise


@cache
def _spline_basis(cells: int) -> NDArray[np.float32]:
    """Cubic B-splines over a patch's side, shape (96, cells + 3), each row of length 1."""
    places = (np.arange(PATCH_SIZE) + 0.5) / PATCH_SIZE * cells
    basis = BSpline.design_matrix(places, np.arange(-3.0, cells + 4.0), 3).toarray()
    normalised: NDArray[np.float32] = (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)
    return normalised


@cache
def _coordinates() -> tuple[Field, Field]:
    """Rows, shape (96, 1), and columns, shape (1, 96)."""
    steps = np.arange(PATCH_SIZE, dtype=np.float32)
    return steps[:, None], steps[None, :]
