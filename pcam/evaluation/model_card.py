"""The model card beside an exported file: what the file is, what goes in, what comes out, how it was made."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pcam.errors import UserError
from pcam.evaluation.export import INPUT_SHAPES
from pcam.models.enlarged import enlarged_part
from pcam.models.inference import EvaluationSettings
from pcam.models.normalization import NormalizingNetwork
from pcam.options import AxisOrder, CheckpointName, FormatName
from pcam.patches import CLASS_NAMES, MICROMETRES_PER_PIXEL, PATCH_SIZE
from pcam.run_folder import RunFolder, read_json, run_names


def network_facts(
    run: RunFolder,
    checkpoint: CheckpointName,
    step: int,
    config: Mapping[str, Any],
    network: nn.Module,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """Collect what a card says about a network, whatever the format of the file.

    Args:
        run: The run folder.
        checkpoint: The checkpoint that the weights are from.
        step: The number of optimizer steps behind the weights.
        config: Every option of the run.
        network: The network at the sizes that it is exported with, without the symmetries around it.
        settings: How its scores are computed.

    Returns:
        The facts, as they lie in JSON.
    """
    options = dict(config["model"]["network"].get("init_args") or {})
    weights, part = options.get("weights"), enlarged_part(network)
    sizes = [PATCH_SIZE, *(() if part is None else part.sizes)]
    # The options that make a network which the weights in the file fit.
    options |= {"weights": None} if "weights" in options else {}
    options |= {"enlarged_sizes": sizes[1:]} if "enlarged_sizes" in options else {}
    published_card = run.path / "config.json"
    earlier = read_json(published_card, "export") if published_card.is_file() else {}
    environment = run.read_environment()
    return {
        "run": earlier.get("run", run_names([run])[0]),  # a published run is that which was trained
        "checkpoint": checkpoint,
        "step": step,
        "network": {"class_path": config["model"]["network"]["class_path"], "init_args": options},
        "trained_from": "random weights" if weights is None else Path(weights).name,
        "classes": list(CLASS_NAMES),
        "scores": {"tta": settings.tta, "sizes": sizes, "reestimate_bn": settings.reestimate_bn},
        "normalization": _normalization(network),
        "micrometres_per_pixel": MICROMETRES_PER_PIXEL,
        "data_fingerprints": environment.get("data_fingerprints"),
        **({"averaged": environment["averaged"]} if "averaged" in environment else {}),
    }


def _normalization(network: nn.Module) -> dict[str, list[float]] | None:
    """The mean and standard deviation of red, green and blue, 0..1; None if the network does not tell."""
    if not isinstance(network, NormalizingNetwork):
        return None
    first = network.normalization
    return {
        name: [round(value / 255, 6) for value in values.flatten().tolist()]
        for name, values in {"mean": first.mean, "std": first.std}.items()
    }


def chosen_on_valid(
    run: RunFolder, settings: EvaluationSettings, checkpoint: CheckpointName, step: int, data_fingerprint: str
) -> dict[str, Any] | None:
    """Find the temperature and the thresholds that evaluation chose for these scores.

    Args:
        run: The run folder.
        settings: How the scores are computed.
        checkpoint: The checkpoint that the weights are from.
        step: The number of optimizer steps behind the weights.
        data_fingerprint: The fingerprint of the valid split.

    Returns:
        The choices and the metrics on the valid split; None if these weights were not evaluated on it with these
        settings.
    """
    record = run.recorded_metrics("valid", settings.suffix) or {}
    found = [record.get(key) for key in ("checkpoint", "step", "data_fingerprint")]
    if found != [checkpoint, step, data_fingerprint] or "operating_points" not in record:
        return None
    try:
        return {
            "temperature": record["calibration"]["temperature"],
            "thresholds": {name: point["threshold"] for name, point in record["operating_points"].items()},
            "metrics": {name: value for name, value in record["metrics"].items() if value is not None},
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected what evaluate wrote in {run.evaluation('valid', settings.suffix)}/metrics.json, but a part of "
            f"it is missing or of another type ({error}); move it away, and evaluate the run again."
        ) from error


def ports(file_format: FormatName, axis_order: AxisOrder) -> dict[str, Any]:
    """Describe the input and the outputs of a file.

    Args:
        file_format: The format of the file.
        axis_order: The axis order of an ONNX model's input.

    Returns:
        The input and the outputs, as they lie in JSON.
    """
    scores = {"name": "scores", "type": "float32", "shape": ["any"], "meaning": "probability of class 1, 0..1"}
    logits = {"name": "logits", "type": "float32", "shape": ["any"], "meaning": "log-odds of class 1"}
    if file_format == "torchscript":
        shape = ["any", *INPUT_SHAPES["NCHW"]]
        two = {"name": "logits", "type": "float32", "shape": ["any", 2], "meaning": "their softmax is the scores"}
        return {
            "input": {"name": "patches", "type": "float32", "shape": shape, "meaning": "RGB, 0..1"},
            "outputs": [two],
        }
    # The weights alone are for the network in this package, which takes NCHW and gives logits.
    shape = ["any", *INPUT_SHAPES[axis_order if file_format == "onnx" else "NCHW"]]
    return {
        "input": {"name": "patches", "type": "uint8", "shape": shape, "meaning": "RGB, 0..255"},
        "outputs": [scores, logits] if file_format == "onnx" else [logits],
    }


def card_markdown(card: Mapping[str, Any]) -> str:
    """Write a model card as a page for readers.

    Args:
        card: The card as it lies beside the model in JSON.

    Returns:
        The same in Markdown.
    """
    normal, tumour = card["classes"]
    parity, fingerprints = card["parity"], card["data_fingerprints"] or {"all splits": "not known"}
    ports = [
        [kind, port["name"], port["type"], f"({', '.join(map(str, port['shape']))})", port["meaning"]]
        for kind, port in [("in", card["input"]), *(("out", port) for port in card["outputs"])]
    ]
    options = ", ".join(f"{name}={value!r}" for name, value in card["network"]["init_args"].items())
    fingerprint = "" if parity["data_fingerprint"] is None else f" (fingerprint `{parity['data_fingerprint']}`)"
    usage = {
        "onnx": f"""\
session = onnxruntime.InferenceSession("{card["file"]}")
scores, logits = session.run(None, {{"patches": patches}})""",
        "safetensors": f"""\
network = {card["network"]["class_path"]}({options}).eval()
network.load_state_dict(safetensors.torch.load_file("{card["file"]}"))
scores = network(patches).sigmoid()""",
        "hub": """\
run = pcam.TrainedRun.load("FOLDER")
scores = run.scores(patches)""",
        "torchscript": f"""\
network = torch.jit.load("{card["file"]}")
scores = network(patches / 255).softmax(dim=1)[:, 1]""",
    }
    return f"""\
# {card["file"]}

Finds metastases in patches of lymph-node sections (PatchCamelyon): whether the centre 32x32 of 96x96 pixels has tumour.
For research; not a medical device.

- Run: `{card["run"]}`, {card["checkpoint"]} checkpoint, step {card["step"]:,}
- Network: `{card["network"]["class_path"]}`, trained from {card["trained_from"]}{_averaged(card.get("averaged", []))}
- A score is {_score_words(card["scores"])}
- File: {card["bytes"]:,} bytes, SHA-256 `{card["sha256"]}`
- Made with: {", ".join(f"{name} {number}" for name, number in card["versions"].items())}

## In and out

| | name | type | shape | meaning |
| --- | --- | --- | --- | --- |
{_rows(ports)}

Class 0 is {normal}, class 1 is {tumour}. A pixel has {card["micrometres_per_pixel"]} um.
{_normalization_words(card["normalization"])}

```python
{usage[card["format"]]}
```

## Chosen on the valid split

{_choices(card["chosen_on_valid"])}

## Agreement with the checkpoint

On {parity["patches"]:,} {parity["of"]}{fingerprint}
the scores of the file and of the checkpoint differ by {parity["largest_difference"]:.1e} at most;
{parity["allowed"]} is allowed.

## Fingerprints of the data that the network was trained on

| split | SHA-256 |
| --- | --- |
{_rows([split, f"`{fingerprint}`"] for split, fingerprint in fingerprints.items())}
"""


def _averaged(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say of which runs a network has the mean of the weights; nothing if it is that of one run."""
    names = ", ".join(f"`{run['run']}` (seed {run['seed']})" for run in runs)
    return f"; the mean of the weights of {len(runs)} runs: {names}" if runs else ""


def _score_words(scores: Mapping[str, Any]) -> str:
    """Say how the scores are computed."""
    words = [f"that of the patch at {' and '.join(map(str, scores['sizes']))} pixels"]
    if scores["tta"]:
        words.insert(0, "the mean over the eight symmetries of the square (test-time augmentation, inside the model)")
    if scores["reestimate_bn"]:
        words.append("with batch-norm statistics that were estimated again on training patches")
    return ", ".join(words)


def _normalization_words(normalization: Mapping[str, Any] | None) -> str:
    if normalization is None:
        return "Normalisation is inside the network."
    return f"""\
Normalisation is inside the network:
(value / 255 - mean) / std with mean {normalization["mean"]} and std {normalization["std"]} of red, green and blue."""


def _choices(choices: Mapping[str, Any] | None) -> str:
    if choices is None:
        return (
            "Not known: `scripts/evaluate.py` chooses thresholds and temperature; export again after it, with the same "
            "options."
        )
    temperature = choices["temperature"]
    calibration = (
        "undefined" if temperature is None else f"{temperature:.4f}; calibrated is sigmoid(logit / temperature)"
    )
    return f"""\
| operating point | tumour if the score (not calibrated) is above |
| --- | --- |
{_rows([name, f"{threshold:.6f}"] for name, threshold in choices["thresholds"].items())}

Temperature: {calibration}.

| metric | on valid |
| --- | --- |
{_rows([name, f"{value:.4f}"] for name, value in choices["metrics"].items())}"""


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
