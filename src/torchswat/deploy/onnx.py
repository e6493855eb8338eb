"""Export to ONNX, for runtimes without sparse kernels, and the check that they compute the same."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from torchswat.errors import InvalidValue, MissingDependency
from torchswat.files import write_atomically

INSTALL = 'pip install "torchswat[export]"'


def export_onnx(model: nn.Module, path: Path, input_shape: Sequence[int]) -> None:
    """Write a plain, pruned network as an ONNX file that takes any number of images.

    Parameters
    ----------
    model : Module
        Of plain torch modules (see `torchswat.runtime.trace.pruned`).
    path : Path
        Of the file; weights are inside it.
    input_shape : (C, H, W)
        Of one image. The input is called ``images``, float32 (N, C, H, W), normalised as in training; the
        output ``scores``, (N, classes).

    Raises
    ------
    MissingDependency
        Where onnx or onnxscript is not installed.
    InvalidValue
        Where torch cannot export the network.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"ONNX needs {error.name}, which is not installed: {INSTALL}") from error
    images = torch.zeros(2, *input_shape)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of torch's own calls,
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # and that torchvision is not there
        file = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(
                model.eval(),
                (images,),
                str(file),
                dynamo=True,
                input_names=["images"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise InvalidValue(f"torch cannot export this network to ONNX: {error}") from error
        content = file.read_bytes()
    write_atomically(path, content)


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function from images, float32 (N, C, H, W), to what ONNX Runtime makes of them.

    It runs on as many threads as torch does.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"checking an ONNX file needs onnxruntime: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
