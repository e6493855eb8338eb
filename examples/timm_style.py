"""A script as timm users write them: AdamW without decay on norms, warm-up and cosine, label smoothing, EMA, bfloat16.

timm itself needs torchvision and is not installed for this example. With it, `create_model`, `ModelEmaV3` and
`create_optimizer_v2` take the places marked below, and the line with sparsify_ stays. Run: python timm_style.py
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset, random_split

import torchswat

parser = argparse.ArgumentParser(description=__doc__)
for name, default in {"epochs": 5, "batch-size": 64, "warmup-epochs": 1}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
for name, default in {
    "lr": 5e-3,
    "weight-decay": 0.05,
    "smoothing": 0.1,
    "clip-grad": 1.0,
    "sparsity": 0.8,
}.items():
    parser.add_argument(f"--{name}", type=float, default=default)
args = parser.parse_args()

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
data = TensorDataset(pixels.float().reshape(-1, 1, 8, 8) / 16, labels)
train, test = (DataLoader(part, args.batch_size, shuffle=True) for part in random_split(data, [1500, 297]))

model = torchswat.models.create("resnet-digits")  # timm.create_model("resnet50", num_classes=10)
torchswat.sparsify_(model, sparsity=args.sparsity, skip=("first", "last"))
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)  # ModelEmaV3(model)
decay, no_decay = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=args.lr)  # create_optimizer_v2(model, opt="adamw", ...)
warm, steps = args.warmup_epochs * len(train), args.epochs * len(train)
rate = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))  # noqa: E731
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
criterion = nn.CrossEntropyLoss(label_smoothing=args.smoothing)

means = []
for epoch in range(args.epochs):
    losses = []
    for images, classes in train:
        with torch.autocast("cpu", torch.bfloat16):  # sparse layers select in float32 and round their outputs
            loss = criterion(model.train()(images), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
        optimizer.step()
        scheduler.step()
        ema.update_parameters(model)
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))
    with torch.no_grad():
        right = sum(int((model.eval()(images).argmax(1) == classes).sum()) for images, classes in test)
    print(f"epoch {epoch}: loss {means[-1]:.3f}, accuracy {right / 2.97:.1f} %")
print(f"loss {means[0]:.3f} -> {means[-1]:.3f}")
