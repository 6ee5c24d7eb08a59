"""The page: what it answers, and that it answers in a browser's place through its own door."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from pcam.commands.evaluate import evaluate
from pcam.commands.page import page
from pcam.errors import UserError
from pcam.page.answers import MOST_PATCHES, answer, with_threshold
from pcam.page.app import _examples
from pcam.trained import TrainedRun
from tests.conftest import write_patches
from tests.scripts.test_evaluate import short_run


@pytest.fixture(scope="module")
def run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    trained = short_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))
    evaluate([trained])
    return TrainedRun.load(trained)


@pytest.fixture
def patches(patch_root: Path) -> list[Path]:
    return sorted((patch_root / "test").rglob("*.png"))[:3]


def scores_of(run: TrainedRun, patches: list[Path]) -> np.ndarray:
    return run.scores(np.stack([np.asarray(Image.open(path)) for path in patches]))


def test_patches_get_scores_decisions_and_a_sheet(run: TrainedRun, patches: list[Path]) -> None:
    found = answer([run, run], patches)
    assert found.complaints == []
    assert len(found.table) == 2 * len(patches)
    assert len(found.sheets) == 2
    expected = scores_of(run, patches)
    assert found.table["score"].to_numpy()[: len(patches)] == pytest.approx(expected, abs=1e-4)
    [youden] = [name for name in found.table.columns if name.startswith("at youden")]
    threshold = float(youden.partition("(")[2].rstrip(")"))
    decided = ["tumour" if score > threshold else "normal" for score in expected]
    assert found.table[youden][: len(patches)].tolist() == decided
    assert found.table["calibrated probability"].between(0, 1).all()


def test_what_is_wrong_with_a_file_is_said_and_the_others_are_scored(
    run: TrainedRun, patches: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.svs"
    text.write_text("no slide")
    found = answer([run], [text, *patches])
    assert len(found.table) == len(patches)
    assert len(found.complaints) == 1
    assert found.complaints[0].startswith("Expected an image (PNG, TIFF or JPEG) in notes.svs, but it cannot be read")
    assert "at once, but found 65" in answer([run], patches[:1] * (MOST_PATCHES + 1)).complaints[0]


def test_a_larger_image_gets_a_map_whose_threshold_can_be_moved(run: TrainedRun, tmp_path: Path) -> None:
    larger = tmp_path / "larger.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 200, (288, 384, 3), dtype=np.uint8)).save(larger)
    [complaint] = answer([run], [larger]).complaints
    assert "resolution" in complaint
    [scores] = answer([run], [larger], mpp=0.972).slides
    figure, sentence = with_threshold(scores, 0.0)
    assert len(figure.axes) >= 2
    area = scores.windows * scores.resolution[0] * scores.resolution[1] / 1e6
    assert f"{area:.3f} mm² of {area:.3f} mm² of tissue have a score above 0.00" in sentence
    assert "0.000 mm² of" in with_threshold(scores, 1.0)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_page_answers_over_http_until_it_is_stopped(run: TrainedRun, patches: list[Path]) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    with page_at(str(run.folder.path)) as address:
        client = gradio_client.Client(address, verbose=False)
        found = client.predict([gradio_client.handle_file(path) for path in patches], 0, api_name="/score")
        table = next(part["value"] for part in found if isinstance(part, dict) and "headers" in str(part.get("value")))
        column = table["headers"].index("score")
        assert [row[column] for row in table["data"]] == pytest.approx(scores_of(run, patches), abs=1e-4)
        client.close()


@pytest.mark.slow
def test_without_a_run_it_is_the_network_that_comes_with_the_package() -> None:
    with page_at() as address:
        assert "About pretrained/best" in requests.get(f"{address}config", timeout=60).text


@contextmanager
def page_at(*words: str) -> Iterator[str]:
    """The command `page` in a process of its own, until Ctrl-C; lends its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pcam", "page", *words, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not answers(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said


def answers(port: int) -> bool:
    """Whether something answers at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_few_patches_make_the_larger_example_too(run: TrainedRun, tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (3, 3), "valid": (3, 2), "test": (1, 1)})
    paths, larger = _examples(tmp_path, run, tmp_path / "patches")
    assert len(paths) == 5
    with Image.open(larger) as image:
        assert image.size == (8 * 96, 6 * 96)


def test_a_run_that_is_not_there_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected a run folder .* but found nothing at "):
        page([tmp_path / "nowhere"])
