"""Accelerate: clipping, accumulation, and a checkpoint that goes on bit for bit.

Run: accelerate launch --cpu --num_processes 2 accelerate_loop.py --steps 60; with --resume it goes on where it stopped.
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--folder", default="accelerate-checkpoint")
parser.add_argument("--resume", action="store_true")
arguments = parser.parse_args()

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
digits = TensorDataset(pixels.float().reshape(-1, 1, 8, 8) / 16, labels)

model = torchswat.models.create("resnet-digits")
schedule = torchswat.schedules.Cubic(final=0.8, steps=30)
torchswat.sparsify_(
    model, sparsity=schedule, skip=("first",), save_state=True
)  # state travels in the state_dict
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(digits, 32, shuffle=True))
torchswat.count_steps_(model, optimizer)  # the schedule counts optimizer steps, not passes
if arguments.resume:
    accelerator.load_state(arguments.folder)

losses, done = [], 0
while done < arguments.steps:
    for images, classes in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(images), classes)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                done += 1
            optimizer.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
        if done == arguments.steps:
            break
accelerator.save_state(arguments.folder)
layer = next(layer for _, layer in torchswat.sparse_layers(model))
accelerator.print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}")
accelerator.print(
    f"after {layer.sparse.iteration} steps, weights kept: {layer.sparse.selectors['weight'].density:.3f}"
)
