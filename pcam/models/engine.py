"""OpenVINO as what evaluates a network on a CPU, in float32."""

import sys
import warnings
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # torch 2.15 does not say that it has it

from pcam.messages import inform
from pcam.patches import PATCH_SIZE, Embeddings, Logits, Patches

PASS_VIEWS: Final = 8
"""Views of patches that one thread computes at once. A pass of so few stays in the processor's caches, and it is just
one patch in its eight symmetries. Measured in docs/performance.md."""

ALLOWED_DIFFERENCE: Final = 1e-5
"""The largest difference of a score from PyTorch's that is allowed; rounding in float32 makes it about 1e-6."""

ALLOWED_OF_EMBEDDING: Final = 1e-4
"""The same of an embedding, relative to its length: about 4e-6 for ImageNet's weights, 1.5e-5 for random ones."""


class Engine:
    """A network that OpenVINO has compiled; passes of a few patches run side by side, one on each of PyTorch's threads.

    Args:
        model: The network in OpenVINO's form, for a fixed number of patches: float32 in, logits or embeddings out.
    """

    def __init__(self, model: Any) -> None:
        import openvino  # noqa: PLC0415  # optional

        self.name = f"OpenVINO {version('openvino')}"
        self._shape = tuple(model.input(0).shape)
        threads = torch.get_num_threads()
        options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
        self._queue = openvino.AsyncInferQueue(_core().compile_model(model, "CPU", options), threads)
        found: dict[int, NDArray[np.float32]] = {}

        # Not a method: the queue would hold the engine, and the engine the queue, which Python cannot see and free.
        def keep(request: Any, number: int) -> None:
            found[number] = request.get_output_tensor().data.copy()

        self._queue.set_callback(keep)
        self._found = found

    def __call__(self, patches: Patches) -> Logits | Embeddings:
        """Compute logits or embeddings.

        Args:
            patches: Any number of patches of 96x96, on the CPU.

        Returns:
            Shape (batch,) or (batch, features), float32; (0,) of no patches.
        """
        passes = -(-len(patches) // self._shape[0])
        padded = torch.zeros(passes * self._shape[0], *self._shape[1:])
        padded[: len(patches)] = patches
        for number, part in enumerate(padded.numpy().reshape(passes, *self._shape)):
            self._queue.start_async([part], number, share_inputs=True)
        self._queue.wait_all()
        found = [self._found.pop(number) for number in range(passes)]
        return torch.from_numpy(np.concatenate(found)[: len(patches)]) if found else torch.empty(0)


_ONE_AT_A_TIME: Final = Lock()


def _core() -> Any:
    """Give OpenVINO's core, one for the whole process.

    The first to compile for the CPU changes the stack that signals are handled on, and changes it back when it is
    freed. Of two that overlap, the second changes it back to that of the first, which is gone: the next signal would
    end the process.
    """
    with _ONE_AT_A_TIME:
        return _new_core()


@cache
def _new_core() -> Any:
    import openvino  # noqa: PLC0415  # optional

    return openvino.Core()


def compiled(network: nn.Module, views: int) -> Engine | None:
    """Make the engine of a network, and check its scores against PyTorch's.

    Args:
        network: Patches in, logits or embeddings out; on the CPU, in float32, in evaluation mode, without gradients.
        views: Views that the network makes of each patch.

    Returns:
        The engine; None if OpenVINO is not installed or cannot compute this network, which a sentence then says.
    """
    # OpenVINO's ReLU makes 0 of NaN: a network that has diverged would have finite logits.
    if find_spec("openvino") is None or not all(bool(tensor.isfinite().all()) for tensor in network.parameters()):
        return None
    size, generator = max(1, PASS_VIEWS // views), torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (size, 3, PATCH_SIZE, PATCH_SIZE), generator=generator).float()
    try:
        engine = Engine(_converted(network, patches))
        why = _disagreement(engine(255 - patches), network(255 - patches))
    except Exception as error:  # whatever a network of the user's own, or OpenVINO for it, raises
        why = " ".join(str(error.__cause__ or error).split())[:200]
    if not why:
        return engine
    inform(f"{type(network).__name__} is evaluated in PyTorch, as OpenVINO cannot compute it ({why}).")
    return None


def _disagreement(found: Logits | Embeddings, expected: Logits | Embeddings) -> str:
    """Say how far scores or embeddings are from PyTorch's; nothing if they are near enough."""
    if expected.ndim == 1:
        difference = float((found.sigmoid() - expected.sigmoid()).abs().max())
        return "" if difference <= ALLOWED_DIFFERENCE else f"its scores differ by {difference:.1e}"
    difference = float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
    return "" if difference <= ALLOWED_OF_EMBEDDING else f"its embeddings differ by {difference:.1e} of their length"


def _converted(network: nn.Module, patches: Patches) -> Any:
    """Bring a network into OpenVINO's form, for as many patches as are given, by following it over them."""
    # OpenVINO reports each import to its makers, unless the package that does so is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to say so
    from openvino import PartialShape, Type  # noqa: PLC0415  # optional
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

    def function(patches: Patches) -> Tensor:
        """Call the network: to follow a module itself, PyTorch translates all its parts first, which takes a second."""
        found: Tensor = network(patches)
        return found

    with warnings.catch_warnings():
        # A decision that depends on the patches would become that for these.
        warnings.filterwarnings("error", category=TracerWarning)
        warnings.filterwarnings("ignore", category=TracerWarning, module="jaxtyping|timm")  # they compare shapes
        # As torch.jit.trace does, which keeps every function that it has followed, with its weights, until Python ends.
        graph, _ = torch._C._create_graph_by_tracing(function, (patches,), lambda tensor: "", True, False)
        traced = torch._C.CompilationUnit().create_function("network", graph)
    frontend = FrontEndManager().load_by_framework("pytorch")  # openvino.convert_model takes a second longer
    decoder = TorchScriptPythonDecoder(traced, example_input=patches)  # must live until the end of the conversion
    model = frontend.load(decoder)
    (place,) = model.get_inputs()
    model.set_element_type(place, Type.f32)
    model.set_partial_shape(place, PartialShape(list(patches.shape)))
    return frontend.convert(model)
