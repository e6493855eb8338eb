"""An exponential moving average of the weights (torch's AveragedModel). Run: python ema.py --steps 150"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=150)
steps = parser.parse_args().steps

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16

model = torchswat.models.create("resnet-digits")
torchswat.sparsify_(model, sparsity=0.8, skip=("first",))
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

losses = []
for _ in range(steps):
    batch = torch.randint(1500, (64,))
    loss = cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update_parameters(model)
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")

# What sparse layers remember is a buffer, which AveragedModel does not average: take it from the trained model.
torchswat.load_sparse_state_(average.module, torchswat.sparse_state(model))
update_bn(images[:1500].split(100), average)
with torch.no_grad():
    for name, network in (("trained", model.eval()), ("averaged", average.module.eval())):
        torchswat.prune_(network)
        accuracy = (network(images[1500:]).argmax(1) == labels[1500:]).float().mean()
        print(f"accuracy of the {name} weights, pruned: {100 * accuracy:.1f} %")
