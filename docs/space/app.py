"""The page as a Space of the Hugging Face hub: this file and the requirements.txt beside it are all that one needs.

Tried on one's own machine with `python app.py`.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from pcam.page.app import build, launch
from pcam.trained import TrainedRun

# A Space says by this variable that the page is to be open to others; elsewhere only this machine can open it.
HOST = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")

if __name__ == "__main__":
    with TemporaryDirectory() as place:
        launch(build([TrainedRun.load("best")], Path(place)), 7860, host=HOST)
