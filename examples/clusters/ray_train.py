"""Ray Train: python ray_train.py --workers 2 on a machine of a Ray cluster (pip install "ray[train]").

With --local the training function runs alone, without Ray.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import torchswat


def train(config, report, folder=None):
    """Train, and give each tenth step to `report`, with a folder to keep; `folder` holds a checkpoint to go on from."""
    parallel = dist.is_initialized()  # Ray sets the process group up
    rank, processes = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    torch.manual_seed(0)
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = pixels.float().reshape(-1, 1, 8, 8) / 16
    model = torchswat.models.create("resnet-digits")
    torchswat.sparsify_(model, sparsity=torchswat.schedules.Cubic(0.8, steps=30), skip=("first",))
    network = DistributedDataParallel(model) if parallel else model
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    first = 0
    if folder is not None:
        saved = torch.load(Path(folder, "state.pt"))
        model.load_state_dict(saved["model"])
        torchswat.load_sparse_state_(model, saved["sparse"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step in range(first, config["steps"]):
        draw = torch.Generator().manual_seed(step)
        batch = torch.randint(len(images), (64,), generator=draw)[rank::processes]
        loss = cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9 or step == first:
            with tempfile.TemporaryDirectory() as kept:
                state = {"model": model.state_dict(), "sparse": torchswat.sparse_state(model)}
                torch.save(
                    {**state, "optimizer": optimizer.state_dict(), "step": step + 1}, Path(kept, "state.pt")
                )
                report({"step": step, "loss": loss.item()}, kept if rank == 0 else None)


def train_on_a_worker(config):
    import ray.train

    def report(metrics, kept):
        ray.train.report(metrics, checkpoint=kept and ray.train.Checkpoint.from_directory(kept))

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        train(config, report)
    else:
        with checkpoint.as_directory() as folder:
            train(config, report, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--local", action="store_true")
    arguments = parser.parse_args()
    if arguments.local:
        train({"steps": arguments.steps}, lambda metrics, _: print(metrics))
    else:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        scaling = ScalingConfig(num_workers=arguments.workers, use_gpu=torch.cuda.is_available())
        run = RunConfig(name="torchswat", failure_config=FailureConfig(max_failures=3))
        trainer = TorchTrainer(
            train_on_a_worker,
            train_loop_config={"steps": arguments.steps},
            scaling_config=scaling,
            run_config=run,
        )
        print(trainer.fit().metrics)
