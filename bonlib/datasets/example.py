"""A folder of images and a table of names to try things on, where the user has none at hand."""

import tempfile
from pathlib import Path

import numpy as np

from bonlib.core.paths import data_dir, make_folder, write_atomically
from bonlib.datasets.characters.glyphs import Glyphs
from bonlib.datasets.toponyms import toponyms


def example_folder(root: str | Path | None = None, *, identities: int = 150, seed: int = 0) -> Path:
    """Write characters as a folder of colour images, ``<identity>/<image>.png``, ink and paper in random colours.

    Args:
        root: where to; by default ``example/`` below :func:`~bonlib.core.paths.data_dir`. A folder that is there stays
            as it is.
        identities: how many characters.
        seed: of the choice of characters and colours.

    Returns:
        The folder.
    """
    from PIL import Image

    folder = data_dir() / "example" if root is None else Path(root).expanduser()
    if folder.is_dir():
        return folder
    glyphs = Glyphs("all").with_identities(identities, seed=seed)
    rng = np.random.default_rng(seed)
    # Written beside and renamed, so that half a folder is never taken for a whole one.
    make_folder(folder.parent)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    for i, label in enumerate(glyphs.labels.tolist()):
        ink = glyphs.pixels([i])[0, 0, :, :, None] / 255  # (32, 32, 1)
        dark, light = rng.integers(0, 110, 3), rng.integers(150, 256, 3)
        pixels = (ink * dark + (1 - ink) * light).astype(np.uint8)  # (32, 32, 3)
        file = unfinished / f"U+{ord(glyphs.class_names[label]):04X}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    unfinished.chmod(0o755)  # temporary folders are closed to others
    unfinished.rename(folder)
    return folder


def example_names(file: str | Path | None = None, *, identities: int = 2000, seed: int = 0) -> Path:
    """Write names of places as a CSV file, ``name,identity``, as those who link records have them.

    Args:
        file: where to; by default ``names.csv`` below :func:`~bonlib.core.paths.data_dir`. A file that is there
            stays as it is.
        identities: how many places.
        seed: of the choice of places.

    Returns:
        The file.
    """
    import pandas as pd

    path = data_dir() / "names.csv" if file is None else Path(file).expanduser()
    if not path.is_file():
        places = toponyms("all").with_identities(identities, seed=seed)
        identity = [places.class_names[i] for i in places.labels.tolist()]
        table = pd.DataFrame({"name": places.strings, "identity": identity})
        write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))
    return path
