"""A network of timm's: what is tapped, which filters stand out, and a page.

    pip install timm && python examples/timm_network.py

Here with random weights and random images, so that nothing is downloaded; with ``pretrained=True`` and images scaled by
``timm.data.create_transform`` it is what you would do with your own.
"""

import timm
import torch

import gmmcnn

torch.manual_seed(0)
model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=10).eval()
images, labels = torch.rand(200, 3, 96, 96), torch.arange(200) % 10

analysis = gmmcnn.analyze(model, images, labels)
print(analysis)
print(analysis.filters.groupby(["kind", "tap"]).size())
for layer, reason in analysis.skipped:
    print(f"not analysed: {layer}: {reason}")
print("Page:", analysis.to_html("mobilenetv3.html"))
