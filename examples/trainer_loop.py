"""pytorch-metric-learning's trainer, with Bag of Negatives as sampler: python examples/trainer_loop.py [steps]."""

import sys
from itertools import chain, count

import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.trainers import MetricLossOnly

from bonlib import BagOfNegatives, Indexed, load_dataset
from bonlib.training.encoders import make_encoder

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
dataset = load_dataset("glyphs", "train")
bag = BagOfNegatives(dataset.labels, dim=64, form="triplet", batch_size=120, steps=steps)  # BoN


class Samples:
    """The trainer takes samples one by one and puts them in batches again: pass after pass of the bag, without end."""

    def __iter__(self):
        return chain.from_iterable(indices for _ in count() for indices in bag)


class BagTrainer(MetricLossOnly):
    def calculate_loss(self, batch):
        images, indices = batch  # the trainer's labels are indices here
        embeddings = self.compute_embeddings(images)
        loss = self.loss_funcs["metric_loss"](embeddings, dataset.labels[indices], bag.index_tuple)  # BoN
        self.losses["metric_loss"] = loss
        bag.update(indices, embeddings)  # BoN


encoder = make_encoder(dim=64)
trainer = BagTrainer(
    models={"trunk": encoder},
    optimizers={"trunk_optimizer": torch.optim.Adam(encoder.parameters(), lr=1e-3)},
    batch_size=bag.batch_size,
    loss_funcs={"metric_loss": TripletMarginLoss(margin=0.2)},
    dataset=Indexed(dataset),
    sampler=Samples(),  # BoN
    iterations_per_epoch=steps,
    dataloader_num_workers=0,
    data_and_label_getter=lambda item: (item[0][0], item[1]),
)
trainer.train()
print({name: round(value, 3) for name, value in bag.stats().items()})
