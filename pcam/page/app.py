"""The page in a browser: what is dropped, what is shown, and that nothing leaves the machine."""

import base64
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pcam.data.synthetic import synthesize
from pcam.extras import import_extra
from pcam.page.answers import Answer, answer, with_threshold
from pcam.patches import MICROMETRES_PER_PIXEL
from pcam.run_folder import run_names
from pcam.trained import TrainedRun

LARGEST_UPLOAD: Final = "500mb"
"""The size of a file, at most, that the page takes."""

KEPT_SECONDS: Final = 3600
"""How long what visitors dropped, and what was drawn of it, stays on the disk."""

EXAMPLES: Final = 8
"""The number of patches that are there to be tried."""

INTRODUCTION: Final = """\
# Metastases in lymph nodes, patch by patch

Drop patches of 96x96 pixels (0.972 um each), or a larger image or slide, or click an example. For each patch the
network says how likely there is breast cancer in the centre square; for a larger image it draws a map. What you drop
stays on the machine that runs this page.

**For research and teaching only. This is not a diagnosis.**
"""


def build(runs: Sequence[TrainedRun], place: Path, root: Path | None = None) -> Any:
    """Build the page.

    Args:
        runs: The classifiers, at least one; several are shown side by side.
        place: A folder for the examples, for what visitors drop and for their tables; whoever made it removes it.
        root: A folder with patches of PatchCamelyon, of which examples are taken beside the painted ones; None for
            painted ones only.

    Returns:
        Gradio's blocks, to be launched.
    """
    # Before Gradio is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(place / "uploads")}
    gradio = import_extra("gradio", "page")
    patches, larger = _examples(place, runs[0], root)

    def score(files: list[str] | None, mpp: float | None) -> list[Any]:
        found = answer(runs, [Path(path) for path in files or []], mpp or None)
        return [
            gradio.Markdown("\n\n".join(found.complaints), visible=bool(found.complaints)),
            gradio.Dataframe(found.table, visible=len(found.table) > 0),
            gradio.DownloadButton(value=_csv(found, place), visible=len(found.table) > 0),
            gradio.HTML(
                _pictures(found.sheets, "What speaks for and against tumour in the patches"), visible=bool(found.sheets)
            ),
            found.slides,
            gradio.Slider(value=found.slides[0].threshold if found.slides else 0.5, visible=bool(found.slides)),
            *draw(found.slides, found.slides[0].threshold if found.slides else 0.5),
        ]

    def draw(slides: list[Any], threshold: float) -> list[Any]:
        drawn = [with_threshold(scores, threshold) for scores in slides]
        return [
            gradio.HTML(
                _pictures([figure for figure, _ in drawn], "The image, and the map of its scores"), visible=bool(drawn)
            ),
            gradio.Markdown("\n\n".join(sentence for _, sentence in drawn), visible=bool(drawn)),
        ]

    with gradio.Blocks(title="pcam", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            files = gradio.File(label="Patches, or larger images", file_count="multiple", scale=3, min_width=320)
            mpp = gradio.Number(
                label="Micrometres per pixel of larger images (0: as their files say)",
                value=0,
                minimum=0,
                scale=1,
                min_width=320,
            )
        button = gradio.Button("Score", variant="primary")
        examples = [[[str(path) for path in patches], 0], [[str(larger)], MICROMETRES_PER_PIXEL]]
        gradio.Examples(
            examples, [files, mpp], label="Examples", example_labels=[f"{len(patches)} patches", "A larger image"]
        )
        complaints = gradio.Markdown(visible=False)
        table = gradio.Dataframe(label="Scores", visible=False, interactive=False)
        download = gradio.DownloadButton("Download the table (CSV)", visible=False)
        sheets = gradio.HTML(visible=False)
        slides = gradio.State([])
        threshold = gradio.Slider(0, 1, 0.5, step=0.01, label="Threshold of the map", visible=False)
        numbers = gradio.Markdown(visible=False)
        maps = gradio.HTML(visible=False)
        outputs = [complaints, table, download, sheets, slides, threshold, maps, numbers]
        button.click(score, [files, mpp], outputs, api_name="score")
        threshold.release(draw, [slides, threshold], [maps, numbers], api_name=False)
        for run, name in zip(runs, run_names([run.folder for run in runs]), strict=True):
            with gradio.Accordion(f"About {name}", open=False):
                gradio.Markdown(_card(run))
    return page


def launch(page: Any, port: int, *, host: str = "127.0.0.1", block: bool = True) -> str:
    """Show the page on this machine.

    Args:
        page: What `build` built.
        port: The port, 1 to 65,535.
        host: The address that the page listens at; that of the loopback device lets only this machine open it.
        block: Whether to go on until Ctrl-C.

    Returns:
        The page's address.
    """
    gradio = import_extra("gradio", "page")
    # The system's fonts, as others would be fetched from elsewhere.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    address: str = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=LARGEST_UPLOAD,
        theme=theme,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        prevent_thread_lock=not block,
    )[1]
    return address


def _examples(place: Path, run: TrainedRun, root: Path | None) -> tuple[list[Path], Path]:
    """Write patches to try, and a larger image that is made of them."""
    if root is None:
        patches = synthesize(EXAMPLES, seed=7)[0]
    else:
        run.data.root = root
        patches = run.data.packed("valid").patches[:EXAMPLES]
    mosaic = np.concatenate(
        [np.concatenate(list(row), axis=1) for row in np.resize(patches, (6, EXAMPLES, *patches.shape[1:]))]
    )
    larger = place / "larger image.png"
    Image.fromarray(mosaic).save(larger)
    paths = [place / f"patch {number}.png" for number in range(1, len(patches) + 1)]
    for path, patch in zip(paths, patches, strict=True):
        Image.fromarray(patch).save(path)
    return paths, larger


def _csv(found: Answer, place: Path) -> str | None:
    if not len(found.table):
        return None
    with tempfile.NamedTemporaryFile(dir=place, prefix="scores-", suffix=".csv", delete=False) as file:
        found.table.to_csv(file, index=False)
    return file.name


def _pictures(figures: Sequence[Figure], words: str) -> str:
    """Draw figures side by side, one above the other where the window is narrow, as HTML that needs no other file."""
    drawn = []
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        drawn.append(f'<img src="{source}" alt="{words}" style="max-width: 100%; flex: 1 1 400px; min-width: 0">')
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{"".join(drawn)}</div>'


def _card(run: TrainedRun) -> str:
    """What is known of a run: its model card if it is published, else what evaluating it has chosen."""
    page = run.folder.path / "README.md"
    if page.is_file():
        return page.read_text(encoding="utf-8").split("---\n", 2)[-1]
    chosen = run.recorded_choices()
    if chosen is None:
        return "It has not been evaluated on its valid split, so only a threshold of 0.5 is known: run `pcam evaluate`."
    table = pd.DataFrame({"on valid": chosen["metrics"]}).round(4)
    return "\n".join(
        [
            "| metric | on valid |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in table["on valid"].items()),
        ]
    )
