"""A folder of pictures, a subfolder for each class, read by a data set of one's own and passed as it is.

    python examples/image_folder.py

The pictures are made here: discs and squares, ten of either in the other's folder. Put your own folder and network in.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import gmmcnn

SIZE, N_EACH, N_WRONG = 16, 100, 10


class Pictures(Dataset[tuple[Tensor, int]]):
    """Every ``DIR/CLASS/*.png`` with the number of its class."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(path.name for path in folder.iterdir())
        self.items = [(path, classes.index(path.parent.name)) for path in sorted(folder.glob("*/*.png"))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=np.float32) / 255
        return torch.from_numpy(pixels)[None], label


def draw(folder: Path) -> None:
    """Discs and squares of random place and size; the first few of each lie in the wrong folder."""
    rng = np.random.default_rng(0)
    for shape, other in (("disc", "square"), ("square", "disc")):
        (folder / shape).mkdir(exist_ok=True)
        (folder / other).mkdir(exist_ok=True)
        for n in range(N_EACH):
            picture = Image.new("L", (SIZE, SIZE))
            x, y, half = rng.integers(5, SIZE - 5), rng.integers(5, SIZE - 5), rng.integers(3, 6)
            pen = ImageDraw.Draw(picture)
            drawn = pen.ellipse if shape == "disc" else pen.rectangle
            drawn((int(x - half), int(y - half), int(x + half), int(y + half)), fill=255)
            picture.save(folder / (other if n < N_WRONG else shape) / f"{shape}-{n:03}.png")


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        draw(Path(made))
        pictures = Pictures(Path(made))
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * (SIZE // 2) ** 2, 2),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(20):
            for images, labels in DataLoader(pictures, batch_size=40, shuffle=True):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        analysis = gmmcnn.analyze(model.eval(), pictures, samples=2 * N_EACH)
        first = analysis.samples.nlargest(2 * N_WRONG, "memorisation_rank")["sample"]
        paths = [pictures.items[sample][0] for sample in first]
        wrong = [path for path in paths if not path.name.startswith(path.parent.name)]
        n = 2 * N_WRONG
        print(f"{len(wrong)} of the {n} pictures in the wrong folder are among the {n} that stand first")
