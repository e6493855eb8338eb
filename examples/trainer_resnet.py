"""Hugging Face Trainer, a ResNet with TensorBoard and resume. Run: python trainer_resnet.py --steps 60 [--resume]"""

import argparse

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

import torchswat
from torchswat.integrations import TrainerCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--folder", default="trainer-resnet")
parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
arguments = parser.parse_args()

set_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels).float().reshape(-1, 1, 8, 8) / 16
digits = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]

config = ResNetConfig(
    num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
)
trainer = Trainer(
    ResNetForImageClassification(config),
    TrainingArguments(
        arguments.folder, max_steps=arguments.steps, per_device_train_batch_size=32, learning_rate=0.01,
        gradient_accumulation_steps=2, logging_steps=10, save_steps=20, report_to="tensorboard",
        lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=digits,
)  # fmt: skip
schedule = torchswat.schedules.Cubic(final=0.8, steps=40)  # counts optimizer steps
trainer.add_callback(TrainerCallback(trainer, sparsity=schedule, skip=("first",)))
trainer.train(resume_from_checkpoint=arguments.resume or None)

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
kept = [entry for entry in trainer.state.log_history if "torchswat/weight_density" in entry]
print(f"weights kept {kept[0]['torchswat/weight_density']:.3f} -> {kept[-1]['torchswat/weight_density']:.3f}")
