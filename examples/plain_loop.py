"""Bag of Negatives in a plain PyTorch loop; nothing of bonlib but the bag. python examples/plain_loop.py [steps]."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from bonlib import BagOfNegatives

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 400
rng, _ = np.random.default_rng(0), torch.manual_seed(0)

# Data: a character is an identity; its images are that character in nine fonts, twice each, turned a little.
folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
fonts = [ImageFont.truetype(str(path), 22) for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.stem]


def draw(character, font):
    canvas = Image.new("L", (32, 32))
    ImageDraw.Draw(canvas).text((16, 16), character, fill=255, font=font, anchor="mm")
    return np.asarray(canvas.rotate(rng.uniform(-30, 30)))


characters = [chr(point) for point in range(0x21, 0x500) if chr(point).isalnum()]
images = np.stack([draw(character, font) for character in characters for font in fonts for _ in range(2)])
images = torch.from_numpy(images).unsqueeze(1).float() / 255  # (samples, 1, 32, 32)
labels = torch.arange(len(characters)).repeat_interleave(2 * len(fonts))  # (samples,)
unseen = labels % 5 == 0  # a fifth of the identities is never trained on
test_images, test_labels, images, labels = images[unseen], labels[unseen], images[~unseen], labels[~unseen]
blocks = [layer for i, o in ((1, 32), (32, 64), (64, 64))
          for layer in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))]  # fmt: skip
encoder = nn.Sequential(*blocks, nn.Flatten(), nn.BatchNorm1d(1024), nn.Linear(1024, 64))
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)


def batch_hard(embeddings, labels, margin=0.2):
    """Each sample against the farthest of its identity and the nearest of another (Hermans et al. 2017)."""
    distances = torch.cdist(embeddings, embeddings)  # (batch, batch)
    same = labels[:, None] == labels
    farthest, nearest = (distances * same).amax(1), (distances + 9 * same).amin(1)  # (batch,)
    return (farthest - nearest + margin).relu().mean()


bag = BagOfNegatives(labels, dim=64, batch_size=128, steps=steps)  # 32 identities in groups of look-alikes
for indices in bag:
    embeddings = nn.functional.normalize(encoder(images[indices]))
    loss = batch_hard(embeddings, labels[indices])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    bag.update(indices, embeddings)

with torch.no_grad():
    found = nn.functional.normalize(encoder.eval()(test_images))
nearest = (found @ found.T).fill_diagonal_(-1).argmax(dim=1)
print(f"R@1 on {len(found)} images of unseen identities: {(test_labels[nearest] == test_labels).float().mean():.3f}")
