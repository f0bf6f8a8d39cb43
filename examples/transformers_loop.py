"""Hugging Face's Trainer: python examples/transformers_loop.py [steps [checkpoint]], images of characters."""

import sys

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from bonlib import BagOfNegatives, load_dataset
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None  # a folder that an earlier run has saved
images = load_dataset("glyphs", "train")
bag = BagOfNegatives(images.labels, dim=64, batch_size=128, steps=steps)  # BoN
if checkpoint:
    bag.load_state_dict(torch.load(f"{checkpoint}/bag.pt", weights_only=True))  # BoN


class Rows(Dataset):
    """What a model of transformers takes: rows by name, and the number of each for the bag."""

    def __len__(self) -> int:
        return len(images)

    def __getitem__(self, i: int) -> dict:
        image, label = images[i]
        return {"image": image, "labels": label, "index": i}


class BagTrainer(Trainer):
    """The bag draws the batches, and is told what became of them."""

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=bag, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        embeddings = model(inputs["image"])
        loss, _ = batch_hard(embeddings, inputs["labels"], None)
        if model.training:
            bag.update(inputs["index"], embeddings)  # BoN
        return (loss, embeddings) if return_outputs else loss


class Keep(TrainerCallback):
    """The bag's state beside each checkpoint: the bag knows its place, so the trainer must not skip batches."""

    def on_save(self, args, state, control, **kwargs) -> None:
        torch.save(bag.state_dict(), f"{args.output_dir}/checkpoint-{state.global_step}/bag.pt")


encoder = make_encoder(dim=64).to(memory_format=torch.contiguous_format)  # the checkpoint's format asks for it
batch_hard = make_loss("batch-hard", margin=0.3)
arguments = TrainingArguments(
    "build/transformers", max_steps=steps, learning_rate=1e-3, lr_scheduler_type="constant", use_cpu=True,
    remove_unused_columns=False, save_steps=steps, ignore_data_skip=True, report_to="none", disable_tqdm=True,
    logging_strategy="no",
)  # fmt: skip
BagTrainer(encoder, arguments, train_dataset=Rows(), callbacks=[Keep()]).train(checkpoint)
print({name: round(value, 3) for name, value in bag.stats().items()})
