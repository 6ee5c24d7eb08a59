"""Areas that files mark: annotations of ASAP, GeoJSON and masks, and what is refused in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import shapely

from pcam.errors import UserError
from pcam.slides.marked import MarkedPolygons, Polygon, find_marked, read_marked
from pcam.slides.slide import Slide
from tests.slides.mosaics import noise
from tests.slides.test_slide import ArrayReader, slide_of


@pytest.fixture
def slide() -> Slide:
    """At 0.243 um; all but 40 pixels at the left and 20 at the top were scanned: 150x155 pixels of 0.972 um."""
    return slide_of(ArrayReader([noise(20, 20)], bounds=(40, 20, 600, 620)), 0.243)


def asap(*annotations: tuple[str, list[tuple[float, float]]], before: str = "") -> str:
    """Annotations as ASAP writes them: the group and the corners of each."""
    found = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{number}" X="{x}" Y="{y}"/>' for number, (x, y) in enumerate(corners))
        + "</Coordinates></Annotation>"
        for group, corners in annotations
    )
    return f'<?xml version="1.0"?>{before}<ASAP_Annotations><Annotations>{found}</Annotations></ASAP_Annotations>'


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_a_pixel_is_marked_if_its_middle_is_inside() -> None:
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 30))
    ring = [(40 + r * np.cos(a), 30 + r * np.sin(a)) for a, r in zip(angles, rng.uniform(8, 28, 30), strict=True)]
    hole = box(37.2, 26.1, 45.4, 33.3)
    expected = shapely.Polygon(ring, [hole])
    marked = MarkedPolygons([Polygon(ring, [hole])])
    found = marked.mask(20, 10, 50, 40)
    y, x = np.mgrid[10:50, 20:70] + 0.5
    assert np.array_equal(found, shapely.contains_xy(expected, x, y))
    assert np.array_equal(marked.mask(35, 22, 9, 8), found[12:20, 15:24])
    assert not marked.mask(200, 200, 10, 10).any()


def test_annotations_of_asap_are_whole_slide_pixels_with_parts_cut_out(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "slide.xml"
    path.write_text(
        asap(("_2", box(80, 60, 120, 100)), ("_0", box(40, 20, 200, 180)), ("Tumor", box(400, 400, 440, 440)))
    )
    found = read_marked(path, slide).mask(0, 0, 150, 155)
    expected = np.zeros((155, 150), dtype=bool)
    expected[:40, :40] = expected[95:105, 90:100] = True
    expected[10:20, 10:20] = False
    assert np.array_equal(found, expected)


def test_geojson_is_pixels_from_the_corner_of_what_was_scanned(slide: Slide, tmp_path: Path) -> None:
    geometry = {"type": "Polygon", "coordinates": [box(0, 0, 160, 160), box(40, 40, 80, 80)]}
    several = {"type": "MultiPolygon", "coordinates": [[box(360, 380, 400, 420)], [box(500, 0, 540, 40)]]}
    path = tmp_path / "slide.geojson"
    found = [{"type": "Feature", "geometry": geometry}, {"type": "GeometryCollection", "geometries": [several]}]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": found}))
    expected = np.zeros((155, 150), dtype=bool)
    expected[:40, :40] = expected[95:105, 90:100] = expected[:10, 125:135] = True
    expected[10:20, 10:20] = False
    assert np.array_equal(read_marked(path, slide).mask(0, 0, 150, 155), expected)


def feature(name: str | None, *names: str, corners: list[tuple[float, float]] | None = None) -> dict[str, Any]:
    """An annotation as QuPath writes it, of a class or of none."""
    geometry = {"type": "Polygon", "coordinates": [corners or box(0, 0, 160, 160)]}
    given = {"classification": {"names": names} if names else {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "geometry": geometry, "properties": {} if name is None and not names else given}


def test_classes_of_qupath_say_what_is_tumour(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "slide.geojson"
    normal = feature("Normal", corners=box(40, 40, 80, 80))
    whole, cut = np.zeros((155, 150), dtype=bool), np.zeros((155, 150), dtype=bool)
    whole[:40, :40] = cut[:40, :40] = True
    cut[10:20, 10:20] = False
    for found in (feature("Tumor"), feature(None), feature(None, "metastasis")):
        path.write_text(json.dumps([normal, found]))
        assert np.array_equal(read_marked(path, slide).mask(0, 0, 150, 155), cut)
    path.write_text(json.dumps([feature("Region*")]))
    assert np.array_equal(read_marked(path, slide, tumour=False).mask(0, 0, 150, 155), whole)
    path.write_text(json.dumps([feature("Ignore*", corners=box(40, 40, 80, 80)), feature("Normal")]))
    assert np.array_equal(read_marked(path, slide, tumour=False).mask(0, 0, 150, 155), cut)
    path.write_text(json.dumps(feature("Tumor") | {"properties": {"classification": "tumor"}}))
    assert np.array_equal(read_marked(path, slide).mask(0, 0, 150, 155), whole)
    path.write_text(json.dumps(feature("Tumor") | {"properties": {"classification": {"names": None}}}))
    assert np.array_equal(read_marked(path, slide).mask(0, 0, 150, 155), whole)


@pytest.mark.parametrize("shrink", [1, 4, 8])
def test_a_mask_lies_over_the_whole_slide_at_any_resolution(shrink: int, slide: Slide, tmp_path: Path) -> None:
    mask = np.zeros((640 // shrink, 640 // shrink), np.uint8)
    mask[160 // shrink : 320 // shrink, 320 // shrink : 480 // shrink] = 1
    path = tmp_path / "slide_mask.tif"
    pyvips.Image.new_from_array(mask).tiffsave(str(path), tile=True, pyramid=True, compression="deflate")
    found = read_marked(path, slide).mask(3, 5, 140, 150)
    expected = np.zeros((150, 140), dtype=bool)
    expected[30:70, 67:107] = True
    assert np.array_equal(found, expected)


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xml", "no xml", r"annotations of ASAP in .*a.xml, but it cannot be read as such \(ParseError"),
        ("a.xml", "<b/>", "its first element is b"),
        ("a.xml", asap(before=BOMB), "EntitiesForbidden"),
        ("a.xml", asap(("_0", box(0, 0, 9, 9)[:2])), "a polygon has 2 corners"),
        ("a.xml", asap(("_0", [(0, 0), (9, float("inf")), (9, 9)])), "a coordinate is no finite number"),
        ("a.xml", asap(("stroma", box(0, 0, 99, 99))), r"groups of annotations .*found 'stroma'; rename it in"),
        ("a.xml", asap(("_0", box(9000, 0, 9100, 99))), r"areas within slide, but .*begins at \(8960, -20\), outside"),
        ("a.geojson", json.dumps(feature("Stroma")), r"groups of annotations .*found 'Stroma'; rename it in"),
        ("a.geojson", "{", r"polygons in GeoJSON in .*a.geojson, .*JSONDecodeError"),
        ("a.geojson", '{"type": "Point", "coordinates": [1, 2]}', "a Point has no area"),
        ("a.geojson", '{"type": "Feature", "geometry": null}', "cannot be read as such"),
        ("a.geojson", "[" * 100_000, "RecursionError"),
        ("a.json", json.dumps({"type": "Polygon", "coordinates": [box(-99, -99, -9, -9)]}), "outside of it"),
        ("a.tif", "no image", r"a.tif, but it cannot be read \(it is no image of a known format\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(name: str, content: str, expected: str, slide: Slide, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=expected):
        read_marked(tmp_path / name, slide)


def test_a_mask_of_another_shape_is_refused(slide: Slide, tmp_path: Path) -> None:
    pyvips.Image.black(300, 200).write_to_file(str(tmp_path / "mask.png"))
    with pytest.raises(UserError, match=r"shape of its slide \(640x640 pixels\) in .*mask.png, but found 300x200"):
        read_marked(tmp_path / "mask.png", slide)


def test_files_are_found_by_the_names_of_slides(tmp_path: Path) -> None:
    slide = tmp_path / "Tumor_001.tif"
    for name in ("Tumor_001.tif", "tumor_001_Mask.tif", "tumor_0010.xml"):
        (tmp_path / name).write_text("")
    assert find_marked(tmp_path, slide) == tmp_path / "tumor_001_Mask.tif"
    assert find_marked(tmp_path / "tumor_0010.xml", slide) == tmp_path / "tumor_0010.xml"
    assert find_marked(tmp_path, tmp_path / "other.tif") is None
    with pytest.raises(UserError, match=r"file or folder with marked areas at .*nowhere, but found nothing"):
        find_marked(tmp_path / "nowhere", slide)
