"""Lightning with Bag of Negatives as batch sampler: python examples/lightning_loop.py [steps]."""

import sys

import lightning
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from torch.utils.data import DataLoader

from bonlib import BagOfNegatives, Indexed, load_dataset
from bonlib.training.encoders import make_encoder

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
dataset = load_dataset("glyphs", "train")
bag = BagOfNegatives(dataset.labels, dim=64, form="triplet", batch_size=120, steps=steps)  # BoN


class Training(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder, self.loss = make_encoder(dim=64), TripletMarginLoss(margin=0.2)

    def training_step(self, batch, _):
        (images, labels), indices = batch
        embeddings = self.encoder(images)
        bag.update(indices, embeddings)  # BoN
        loss = self.loss(embeddings, labels, bag.index_tuple)  # BoN: the triplets are laid out
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["bag"] = bag.state_dict()  # BoN: a resumed run draws the same batches

    def on_load_checkpoint(self, checkpoint):
        bag.load_state_dict(checkpoint["bag"])  # BoN


trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
)
trainer.fit(Training(), DataLoader(Indexed(dataset), batch_sampler=bag))
print({name: round(value, 3) for name, value in bag.stats().items()})
