"""Hugging Face accelerate: accelerate launch examples/accelerate_loop.py [steps], on one process or several."""

import sys

import torch
from accelerate import Accelerator
from pytorch_metric_learning.losses import TripletMarginLoss

from bonlib import BagOfNegatives, load_dataset
from bonlib.core.distributed import RankMiner
from bonlib.training.encoders import make_encoder

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
accelerator = Accelerator(cpu=not torch.cuda.is_available())
dataset = load_dataset("glyphs", "train")
bag = BagOfNegatives(dataset.labels, dim=64, form="triplet", batch_size=120, steps=steps)  # BoN: the global batch
share = RankMiner(bag)  # BoN: of this process; with one process all of it
encoder = make_encoder(dim=64)
encoder, optimizer = accelerator.prepare(encoder, torch.optim.Adam(encoder.parameters(), lr=1e-3))
loss_fn = TripletMarginLoss(margin=0.2)
for indices in share:  # BoN
    images, labels = (values.to(accelerator.device) for values in dataset.batch(indices))
    embeddings = encoder(images)
    loss = loss_fn(embeddings, labels, share.index_tuple)  # BoN: the triplets are laid out
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    share.update(indices, embeddings)  # BoN
accelerator.print({name: round(value, 3) for name, value in bag.stats().items()})
accelerator.end_training()
