"""Gradient accumulation: the schedule counts optimizer steps. Run: python gradient_accumulation.py --steps 60"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60, help="of the optimizer")
parser.add_argument("--accumulate", type=int, default=4, help="passes a step")
arguments = parser.parse_args()

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16

model = torchswat.models.create("resnet-digits")
schedule = torchswat.schedules.Cubic(final=0.8, steps=arguments.steps // 2)
torchswat.sparsify_(model, sparsity=schedule, skip=("first",))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
torchswat.count_steps_(model, optimizer)  # without this line four passes a step would be four iterations

losses = []
for step in range(arguments.steps):
    optimizer.zero_grad()
    total = 0.0
    for _ in range(arguments.accumulate):
        batch = torch.randint(len(images), (16,))
        loss = cross_entropy(model(images[batch]), labels[batch]) / arguments.accumulate
        loss.backward()  # gradients add up
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(total)
    if step % 10 == 9:
        layer = next(layer for _, layer in torchswat.sparse_layers(model))
        kept = layer.sparse.selectors["weight"].density
        print(f"step {layer.sparse.iteration}: loss {total:.3f}, weights kept {kept:.3f}")
print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")
