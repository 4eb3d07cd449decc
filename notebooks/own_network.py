# %% [markdown]
# # Your own network in ten minutes
#
# A network of your own, quantized and written as a file that ONNX Runtime loads, and what that costs in accuracy. Open
# this file as a notebook (VS Code, or Jupyter with jupytext), or run it: `python notebooks/own_network.py`.

# %%
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import bitsweep as bs

# %% [markdown]
# ## A network and its data
#
# Any `torch.nn.Module` from images [N, C, H, W] to logits [N, K] will do. Here it stands in a file of its own, so that
# a sweep can find it, too.

# %%
Path("nets.py").write_text("""
from torch import nn


def digits_net(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, num_classes),
    )
""")
names: dict = {}
exec(Path("nets.py").read_text(), names)
torch.manual_seed(0)
network = names["digits_net"](10)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
labels = torch.tensor(digits.target)
train, test = slice(0, 1300), slice(1300, None)

# %%
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
for _epoch in range(6):
    for chosen in torch.randperm(1300).split(64):
        loss = torch.nn.functional.cross_entropy(network(images[train][chosen]), labels[train][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
network.eval()


def top1(logits):
    return float((torch.as_tensor(logits).argmax(1) == labels[test]).float().mean())


with torch.no_grad():
    exact = network(images[test])
print(f"float32: {top1(exact):.3f}")

# %% [markdown]
# ## Compress it
#
# Ranges are chosen on training images, as the network takes them. What comes back can be called like the network.

# %%
found = {}
for method, precision in [("ptq", "int8"), ("ptq", "int4"), ("gptq", "int4")]:
    program = bs.compress(network, images[train], method=method, precision=precision)
    found[method, precision] = program
    print(f"{method} {precision}: {top1(program(images[test])):.3f}, {1000 * program.size_mb:.1f} kB")

# %% [markdown]
# What became of each layer: formats, the error of its weights, and what lay beyond its ranges.

# %%
columns = ["name", "weights", "activations", "sqnr_db", "activation_clipped"]
print(found["ptq", "int8"].layers[columns].to_string(index=False))

# %% [markdown]
# ## The engine's file
#
# It is larger than the weights alone: it holds the graph, too.

# %%
lowered = bs.lower(found["ptq", "int8"], "onnxruntime", "digits_int8")
by_engine = lowered(images[test].numpy())
print(f"{lowered.file.name}: {1000 * lowered.size_mb:.1f} kB, top-1 {top1(by_engine):.3f}")
print("largest difference from PyTorch:", np.abs(by_engine - found["ptq", "int8"](images[test].numpy())).max())

# %% [markdown]
# It runs anywhere, without bitsweep:

# %%
print(f"pip install {' '.join(lowered.needs)}")
print(lowered.how)

# %% [markdown]
# ## How fast is it?
#
# A single timing says little. A sweep measures every engine in a process of its own, in turn with float32, and says
# whether the difference is more than chance. It takes the same network, and trains it on the same digits. This is what
# it would do; `bs.run(cells)` does it, in a few minutes.

# %%
cells = bs.grid(
    "model=own model.factory=nets.py:digits_net model.channels=1 model.image_size=8 train=fast "
    "precision=fp32,int8 backend=onnxruntime,openvino require.drop_pp=1"
)
print(bs.describe(bs.plan(cells)))
