"""Counts of anomaly filters in every epoch of a Lightning training; needs ``pip install 'gmmcnn[lightning]'``.

python examples/lightning_training.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gmmcnn.lightning import OverfittingCallback


class Digits(LightningModule):
    """Two convolutions on 8 × 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 8, 8)."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy of a batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:600, None] / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)[:600]), batch_size=50, shuffle=True)
    callback = OverfittingCallback()
    trainer = Trainer(
        max_epochs=4, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Digits(), loader)
    assert callback.monitor is not None
    print(callback.monitor.history.to_string(index=False))
