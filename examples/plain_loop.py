"""A plain PyTorch loop: train sparsely, prune, save. Run: python plain_loop.py --steps 200"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", default="network.safetensors")
arguments = parser.parse_args()

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16
train, test = slice(0, 1500), slice(1500, None)

model = torchswat.models.create("resnet-digits")
torchswat.sparsify_(model, sparsity=0.8, skip=("first",))  # the only line that a dense loop does not have
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

losses = []
for _ in range(arguments.steps):
    batch = torch.randint(1500, (64,))
    loss = cross_entropy(model(images[train][batch]), labels[train][batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")

print(torchswat.cost(model, images[:8]))
torchswat.desparsify_(torchswat.prune_(model.eval()))  # exact zeros, plain torch modules
with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
print(f"accuracy of the pruned network {100 * accuracy:.1f} %")
torchswat.save(model, arguments.output, input_shape=(1, 8, 8))
print(f"saved as {arguments.output}; torchswat.load reads it")
