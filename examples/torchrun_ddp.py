"""Several processes, with a checkpoint: torchrun --nproc-per-node 2 torchrun_ddp.py --steps 60

With --max-restarts 1 torchrun starts all processes again when one dies; they go on from the last checkpoint.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, by DDP, it would hold the process group
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--checkpoint", type=Path, default=Path("ddp.pt"))  # where all machines see it
parser.add_argument("--die-at", type=int, help="step at which a process of the first attempt dies")
arguments = parser.parse_args()

gpu = torch.cuda.is_available()
dist.init_process_group("nccl" if gpu else "gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images, labels = (pixels.float().reshape(-1, 1, 8, 8) / 16).to(device), labels.to(device)

model = torchswat.models.create("resnet-digits").to(device)
torchswat.sparsify_(model, sparsity=torchswat.schedules.Cubic(0.8, steps=30), skip=("first",))
parallel = DistributedDataParallel(model)  # behind sparsify_: it also sends what sparse layers remember
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
saved = {"step": 0, "losses": []}
if arguments.checkpoint.exists():
    saved = torch.load(arguments.checkpoint, map_location=device)
    model.load_state_dict(saved["model"])
    torchswat.load_sparse_state_(model, saved["sparse"])  # behind the weights
    optimizer.load_state_dict(saved["optimizer"])
losses = saved["losses"]
for step in range(saved["step"], arguments.steps):
    draw = torch.Generator().manual_seed(step)  # the same batch everywhere, of which each takes its share
    batch = torch.randint(len(images), (64,), generator=draw)[rank::processes]
    loss = cross_entropy(parallel(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()  # dense gradients are averaged over the processes
    optimizer.step()
    dist.all_reduce(loss := loss.detach() / processes)
    losses.append(float(loss))
    if rank == 0 and step % 10 == 9:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
        part = arguments.checkpoint.with_suffix(".part")
        torch.save({**state, "sparse": torchswat.sparse_state(model), "losses": losses}, part)
        part.replace(arguments.checkpoint)  # whole or not there
    if step == arguments.die_at and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(1)
everywhere = [None] * processes
dist.all_gather_object(everywhere, sum(p.detach().double().sum().item() for p in model.parameters()))
if rank == 0:
    print(f"loss {losses[0]:.3f} -> {sum(losses[-5:]) / len(losses[-5:]):.3f}, from step {saved['step']} on")
    print(f"{processes} processes have the same weights: {len(set(everywhere)) == 1}")
del parallel  # the last that holds the process group, whose threads must end before Python does
dist.destroy_process_group()
