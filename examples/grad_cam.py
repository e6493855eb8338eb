"""Grad-CAM by hooks on a sparse network: where a class is seen. Run: python grad_cam.py --steps 150

Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391. Hooks on sparse layers are those of torch.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=150)
steps = parser.parse_args().steps

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16
model = torchswat.models.create("resnet-digits")
torchswat.sparsify_(model, sparsity=0.8, skip=("first",))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
losses = []
for _ in range(steps):
    batch = torch.randint(1500, (64,))
    loss = cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")

seen = {}
convolutions = [(n, m) for n, m in torchswat.sparse_layers(model) if getattr(m, "kernel_size", 1) == (3, 3)]
name, layer = convolutions[-1]


def keep(module, inputs, output):
    seen["maps"] = output.detach()
    output.register_hook(lambda gradient: seen.update(gradient=gradient))


handle = layer.register_forward_hook(keep)
image, label = images[1500:1501], int(labels[1500])
model.eval()(image)[0, label].backward()
handle.remove()
weights = seen["gradient"].mean((2, 3), keepdim=True)
heat = interpolate((weights * seen["maps"]).sum(1, keepdim=True).relu(), size=(8, 8), mode="bilinear")[0, 0]
print(f"where layer {name!r} sees a {label} (left the image, right the heat):")
for ink, warm in zip(image[0, 0], heat / heat.max().clamp_min(1e-9), strict=True):
    print("".join(" .:*#"[int(4 * x)] for x in ink), "".join(" .:*#"[int(4 * x)] for x in warm), sep=" | ")
