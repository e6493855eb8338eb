"""Hugging Face Trainer, a small ViT. Run: python trainer_vit.py --steps 100 (pip install "torchswat[transformers]")"""

import argparse

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import torchswat
from torchswat.integrations import TrainerCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--folder", default="trainer-vit")
arguments = parser.parse_args()

set_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels).float().reshape(-1, 1, 8, 8) / 16
digits = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]

config = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, num_labels=10,
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
)  # fmt: skip
trainer = Trainer(
    ViTForImageClassification(config),
    TrainingArguments(
        arguments.folder, max_steps=arguments.steps, per_device_train_batch_size=64, learning_rate=2e-3,
        logging_steps=10, save_steps=50, report_to="none", use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=digits[:1500],
    eval_dataset=digits[1500:],
)  # fmt: skip
sparsity = {"*attention*": 0.5, "*.mlp.*": 0.8}  # by layer name; the patch embedding and the head stay dense
example = {"pixel_values": images[:2]}  # with it the counted savings are logged
trainer.add_callback(TrainerCallback(trainer, sparsity=sparsity, example=example))
trainer.train()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, of the test {trainer.evaluate()['eval_loss']:.3f}")
torchswat.desparsify_(torchswat.prune_(trainer.model))
trainer.save_model()  # a plain ViT with zeros: ViTForImageClassification.from_pretrained reads it
