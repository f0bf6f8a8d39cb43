"""torchdata's StatefulDataLoader: its state holds the bag's. python examples/stateful_loader.py [steps]."""

import copy
import sys

import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from torchdata.stateful_dataloader import StatefulDataLoader

from bonlib import BagOfNegatives, Indexed, load_dataset
from bonlib.training.encoders import make_encoder

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
dataset = load_dataset("glyphs", "train")


def make_loader():
    bag = BagOfNegatives(dataset.labels, dim=64, form="triplet", batch_size=120, steps=steps)  # BoN
    return bag, StatefulDataLoader(Indexed(dataset), batch_sampler=bag)  # BoN


def train(batches, bag):
    for (images, labels), indices in batches:
        embeddings = encoder(images)
        loss = loss_fn(embeddings, labels, bag.index_tuple)  # BoN: the triplets are laid out
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bag.update(indices, embeddings)  # BoN
        yield indices.tolist()


torch.manual_seed(0)
encoder, loss_fn = make_encoder(dim=64), TripletMarginLoss(margin=0.2)
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
bag, loader = make_loader()
running = train(loader, bag)
for _ in range(steps // 2):
    next(running)
saved = copy.deepcopy([part.state_dict() for part in (loader, encoder, optimizer)])
rest = list(running)

again, resumed = make_loader()
for part, state in zip((resumed, encoder, optimizer), saved, strict=True):
    part.load_state_dict(state)
print("the same batches after a stop:", list(train(resumed, again)) == rest)
print({name: round(value, 3) for name, value in again.stats().items()})
