"""Counts of anomaly filters at every epoch of a training loop, and the samples whose labels surprise at its end.

    python examples/plain_loop.py

The loop is plain PyTorch on the digits that come with scikit-learn, a tenth of them with wrong labels.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import gmmcnn

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:600, None] / 16
labels = torch.tensor(digits.target)[:600]
wrong = torch.randperm(600)[:60]
labels[wrong] = (labels[wrong] + torch.randint(1, 10, (60,))) % 10

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10),
)  # fmt: skip
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
monitor = gmmcnn.OverfittingMonitor(model, images, every=5)

for epoch in range(1, 16):
    model.train()
    for batch in torch.randperm(600).split(50):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    monitor.step(epoch)

print(monitor.history)

analysis = gmmcnn.analyze(model, images, labels)
suspects = analysis.samples.nlargest(60, "memorisation_rank")["sample"]
found = len(set(suspects) & set(wrong.tolist()))
print(analysis.summary())
print(f"{found} of the 60 wrong labels are among the 60 samples that stand first (chance 6)")
