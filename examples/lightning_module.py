"""Lightning: one callback. Run: python lightning_module.py --steps 100 (needs pip install "torchswat[lightning]")"""

import argparse

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torchswat
from torchswat.integrations import LightningCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--folder", default="lightning-run")
parser.add_argument("--resume", help="a checkpoint that Lightning wrote")
arguments = parser.parse_args()


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torchswat.models.create("resnet-digits")

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


lightning.seed_everything(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
digits = TensorDataset(pixels.float().reshape(-1, 1, 8, 8) / 16, labels)
rising = torchswat.schedules.Cubic(final=0.8, steps=50)
sparse = LightningCallback(
    sparsity=rising, skip=("first",), example=torch.zeros(2, 1, 8, 8)
)  # counts savings
trainer = lightning.Trainer(
    max_steps=arguments.steps, callbacks=[sparse], log_every_n_steps=5, gradient_clip_val=1.0,
    logger=lightning.loggers.CSVLogger(arguments.folder), enable_progress_bar=False, accelerator="cpu",
)  # fmt: skip
trainer.fit(Digits(), DataLoader(digits, 64, shuffle=True), ckpt_path=arguments.resume)
print({name: round(float(value), 3) for name, value in trainer.logged_metrics.items()})
