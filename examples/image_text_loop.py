"""Images and captions, as in open_clip: python examples/image_text_loop.py [steps], characters and their names.

A row is an image with one of its captions. All captions of an image bear its label, so that a batch never holds two of
them: they would be each other's negatives. The bag knows a row by the mean of its two embeddings.
"""

import sys
import unicodedata

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from bonlib import BagOfNegatives, load_dataset
from bonlib.datasets.strings import TextSet
from bonlib.training.encoders import make_encoder
from bonlib.training.optimizers import make_optimizer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
images = load_dataset("glyphs", "train")
first = torch.tensor([int(images.ids_of_class(name)[0]) for name in images.class_names])  # an image of each character
names = [unicodedata.name(name[-1], name).lower() for name in images.class_names]
captions = [caption for name in names for caption in (name, f"the {name}", " ".join(reversed(name.split())))]
image_of = torch.arange(len(names)).repeat_interleave(3)  # three captions an image
texts = TextSet(captions, image_of, names)

towers = nn.ModuleDict({"image": make_encoder(dim=64, seed=0), "text": make_encoder("ngrams", dim=64, seed=0)})
optimizer = make_optimizer(towers, nn.Identity(), lr=1e-3, loss_lr=None)  # the text tower has sparse gradients
bag = BagOfNegatives(image_of, dim=64, batch_size=64, per_class=1, steps=steps)  # BoN: a caption each of 64 images
for rows in bag:
    pixels, _ = images.batch(first[image_of[rows]])
    strings, _ = texts.batch(rows)
    seen, read = normalize(towers["image"](pixels)), normalize(towers["text"](strings))  # (rows, 64) each
    logits = 10 * seen @ read.T  # (rows, rows)
    right = torch.arange(len(rows))
    loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    bag.update(rows, (seen + read) / 2)  # BoN
print(f"images in the last batch: {len(image_of[rows].unique())} of {len(rows)}, loss {loss.item():.2f}")
print({name: round(value, 3) for name, value in bag.stats().items()})
