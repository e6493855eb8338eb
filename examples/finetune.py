"""Fine-tune a dense, trained network sparsely, then prune it. Run: python finetune.py --steps 150"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=150, help="of the fine-tuning, and as many before it")
steps = parser.parse_args().steps

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16


def train(model, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        batch = torch.randint(1500, (64,))
        loss = cross_entropy(model.train()(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")


def report(name, model):
    with torch.no_grad():
        accuracy = (model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
    zeros = sum(int((p == 0).sum()) for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    print(f"{name}: accuracy {100 * accuracy:.1f} %, {100 * zeros:.1f} % of the parameters zero")


model = torchswat.models.create("resnet-digits")
train(model, lr=0.05)  # stands for a pretrained network: the weights are loaded before sparsify_
report("dense", model)
schedule = torchswat.schedules.Cubic(final=0.8, steps=max(1, steps // 2))  # fast at first, then flat
torchswat.sparsify_(model, sparsity=schedule, skip=("first", "last"))
train(model, lr=0.02)
torchswat.desparsify_(torchswat.prune_(model))
report("fine-tuned and pruned", model)
