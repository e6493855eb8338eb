"""Train, prune, export to ONNX, answer in ONNX Runtime. Run: python onnx_runtime.py --steps 100

Needs pip install "torchswat[export]". ONNX Runtime has no sparse kernels: the file is for portability, not for speed.
"""

import argparse
import warnings

import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--output", default="network.onnx")
arguments = parser.parse_args()

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16
model = torchswat.models.create("resnet-digits")
torchswat.sparsify_(model, sparsity=0.8, skip=("first",))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
losses = []
for _ in range(arguments.steps):
    batch = torch.randint(1500, (64,))
    loss = cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")

torchswat.desparsify_(torchswat.prune_(model.eval()))  # exporters take plain modules
dynamic = {0: torch.export.Dim("batch", min=1)}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's exporter warns of torch's own calls
    options = {"dynamic_shapes": (dynamic,), "external_data": False, "verbose": False}
    torch.onnx.export(model, (images[:2],), arguments.output, **options)
session = onnxruntime.InferenceSession(arguments.output, providers=["CPUExecutionProvider"])
(scores,) = session.run(None, {session.get_inputs()[0].name: images[1500:].numpy()})
with torch.no_grad():
    largest = float((torch.from_numpy(scores) - model(images[1500:])).abs().max())
accuracy = (torch.from_numpy(scores).argmax(1) == labels[1500:]).float().mean()
print(f"ONNX Runtime: accuracy {100 * accuracy:.1f} %, outputs agree within {largest:.1e}")
