"""A run as a folder that others can take: what the Hugging Face hub shows, and `TrainedRun.load` reads back.

The folder is a published run (see `pcam.published`): config, weights, what was measured, and a model card. It names no
path of the machine that it was made on.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import yaml
from torch import nn

from pcam.data.stain import Staining
from pcam.evaluation.export import checkpoint_score, largest_difference
from pcam.evaluation.model_card import card_markdown
from pcam.models.published_weights import save_published
from pcam.options import SPLIT_NAMES, CheckpointName
from pcam.patches import PatchArray
from pcam.run_folder import RunFolder

HALF_DIFFERENCE: Final = 1e-3
"""The largest difference of a score for which weights are stored in half precision."""

DATA_PLACE: Final = "data/pcam"
"""Where the config of a published run looks for the data: where `pcam download data/pcam` puts them."""

_SETTINGS: Final = {"": "each patch once", "_tta": "mean over the eight symmetries of the square (--tta)"}
_METRICS: Final = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy at a score of 0.5",
    "loss": "NLL",
}


def write_weights(network: nn.Module, path: Path, step: int, patches: PatchArray) -> tuple[nn.Module, float]:
    """Write the weights, in half precision if no score of a patch moves by more than `HALF_DIFFERENCE`.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        path: The file.
        step: The number of optimizer steps behind the weights.
        patches: Shape (count, 96, 96, 3); what scores are compared on.

    Returns:
        The network with the weights as they are in the file, and the largest difference of a score.
    """
    scores = checkpoint_score(network)
    stored = save_published(network, path, step, half=True)
    difference = largest_difference(patches, scores, checkpoint_score(stored))
    if not difference <= HALF_DIFFERENCE:
        stored = save_published(network, path, step, half=False)
        difference = largest_difference(patches, scores, checkpoint_score(stored))
    return stored, difference


def write_record(
    run: RunFolder,
    folder: Path,
    checkpoint: CheckpointName,
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    staining: Staining | None,
) -> None:
    """Write all that a published run holds besides its weights.

    Args:
        run: The run folder.
        folder: The folder of the published run.
        checkpoint: The checkpoint that the weights are from.
        card: The model card as it lies in JSON.
        config: Every option of the run.
        staining: The staining of the training patches, for adaptation where these are not at hand; None if not known.
    """
    config = _without_places(config, card["network"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    environment = run.read_environment() | ({} if staining is None else {"staining": asdict(staining)})
    if environment:
        (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    results = {}
    for name, record in _measured(run, checkpoint, card["step"]):
        results[name] = record | {"data_root": DATA_PLACE}
        (folder / "evaluation" / name).mkdir(parents=True)
        (folder / "evaluation" / name / "metrics.json").write_text(
            json.dumps(results[name], indent=2) + "\n", encoding="utf-8"
        )
    (folder / "README.md").write_text(_page(card, results), encoding="utf-8")


def _without_places(config: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what holds on one machine only; the network as it is in the file of weights."""
    changed = deepcopy(dict(config))
    weights = (changed["model"]["network"].get("init_args") or {}).get("weights")
    changed["model"]["network"] = {"class_path": network["class_path"], "init_args": dict(network["init_args"])}
    if weights is not None:
        changed["model"]["network"]["init_args"]["weights"] = Path(weights).name
    changed["data"] |= {"root": DATA_PLACE, "cache_dir": None}
    changed["runs_dir"] = "lightning_logs"
    return changed


def _measured(run: RunFolder, checkpoint: CheckpointName, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What evaluating measured of these weights, by the name of the folder."""
    for split in SPLIT_NAMES:
        for suffix in _SETTINGS:
            record = run.recorded_metrics(split, suffix)
            if record is not None and (record.get("checkpoint"), record.get("step")) == (checkpoint, step):
                yield f"{split}{suffix}", record


def _page(card: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The model card as the hub shows it."""
    experiment = str(card["run"]).partition("/")[0]
    metadata = {
        "license": "mit",
        "library_name": "pcam",
        "pipeline_tag": "image-classification",
        "tags": ["pathology", "histopathology", "lymph node", "metastasis", "PatchCamelyon"],
        "model-index": [{"name": f"pcam {experiment}", "results": [_index(*item) for item in results.items()]}],
    }
    rows = [
        f"| {record['split']} ({record['patches']:,} patches) | {_setting(record, name)} | "
        + " | ".join(_estimate(record, metric) for metric in _METRICS)
        + " |"
        for name, record in results.items()
    ]
    count = len(card.get("averaged", []))
    described = f"the mean of the weights of {count} training runs" if count else "that of one training run"
    measured = (
        f"""\
| split | score | {" | ".join(_METRICS.values())} |
| --- | --- |{" --- |" * len(_METRICS)}
{chr(10).join(rows)}

Each value has its 95 % interval, for other patches or slides of the same kind.
The network is {described}; other seeds would give other values, and another
hospital's staining or scanner would probably give lower ones."""
        if rows
        else "This run was not evaluated before it was published."
    )
    return f"""\
---
{yaml.safe_dump(metadata, sort_keys=False)}---
# pcam {experiment}

Finds metastases in patches of lymph-node sections, as in PatchCamelyon: whether there is breast cancer in the centre,
32x32 pixels, of a patch of 96x96. For research and teaching; not a medical device.

```
pip install .    # in a checkout of pcam
pcam predict FOLDER --input PATCHES --output scores.csv
```

`FOLDER` is this folder, or its address on the Hugging Face hub, `hf://owner/name` (with `pip install 'pcam[hub]'`).
In Python it is `pcam.TrainedRun.load("FOLDER").scores(patches)`, for uint8 patches of shape (count, 96, 96, 3).

## Measured

{measured}

## What it is not for

It must not take part in any diagnosis. It has seen patches of lymph nodes with breast cancer only, from two hospitals,
at 0.972 um per pixel; on other tissue, stains, scanners or resolutions its scores mean nothing until they have been
measured there. It answers for the centre of a patch, and not for a patient.

## Data and licences

PatchCamelyon (Veeling et al. 2018, CC0), made from CAMELYON16 (Ehteshami Bejnordi et al. 2017). Weights that were
started from torchvision's ImageNet weights carry torchvision's licence (BSD-3-Clause) as well.

{card_markdown(card)}"""


def _setting(record: Mapping[str, Any], name: str) -> str:
    return _SETTINGS[name.removeprefix(str(record["split"]))]


def _estimate(record: Mapping[str, Any], metric: str) -> str:
    value, interval = record["metrics"].get(metric), record["intervals"].get(metric)
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _index(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """One result in the form of the hub's index of models."""
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": f"PatchCamelyon, {record['patches']:,} patches", "type": "patch_camelyon", "split": name},
        "metrics": [
            {"type": metric, "name": words, "value": record["metrics"][metric]}
            for metric, words in _METRICS.items()
            if record["metrics"].get(metric) is not None
        ],
    }
