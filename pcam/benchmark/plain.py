"""What a good engineer writes in an afternoon to score patches with torchvision's MobileNetV2, as a script.

Imports what such a script does and nothing else of this package's that takes time, as its start is measured too.
"""

import csv
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v2
from torchvision.transforms import Compose, Normalize, ToTensor

from pcam.benchmark.workload import DROPOUT


class PlainNetwork(nn.Module):
    """torchvision's MobileNetV2 as it comes, with one output."""

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2().features
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(1280, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of normalised images, shape (batch,)."""
        logits: Tensor = self.head(self.features(images).mean((2, 3))).squeeze(1)
        return logits


def plain_transform() -> Compose:
    """Make torchvision's way from an image to what the network takes; mean and std are of its ImageNet weights."""
    return Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


@torch.no_grad()
def plain_predict(weights: Path, folder: Path, output: Path, tta: bool) -> None:
    """Write the score of each patch in class folders to a CSV file.

    Args:
        weights: File with the state dict of a `PlainNetwork`.
        folder: The folder with the class folders.
        output: The CSV file, with the columns id and score.
        tta: Whether each score is the mean over the eight symmetries of the square.
    """
    network = PlainNetwork().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = ImageFolder(str(folder), plain_transform())
    scores: list[float] = []
    for batch, _ in DataLoader(images, batch_size=32):
        views = [batch]
        if tta:
            flipped = (batch, batch.flip(3))
            views = [torch.rot90(view, turns, (2, 3)) for view in flipped for turns in range(4)]
        scores += torch.stack([network(view).sigmoid() for view in views]).mean(dim=0).tolist()
    with output.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "score"])
        rows.writerows((path, score) for (path, _), score in zip(images.samples, scores, strict=True))


if __name__ == "__main__":
    weights, folder, output, *option = sys.argv[1:]
    plain_predict(Path(weights), Path(folder), Path(output), tta=option == ["--tta"])
