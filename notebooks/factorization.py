# %% [markdown]
# # Factorisation: layers as chains of smaller ones
#
# `method=factorize` replaces a layer by a chain of smaller layers, and looks for factors on the grid of codes. Rounding
# finished factors, the obvious way, is shown beside it. See Cherniuk 2023 (arXiv 2308.04595).

# %%
import matplotlib.pyplot as plt
import pandas
import torch
from sklearn.datasets import load_digits

import bitsweep as bs

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
labels = torch.tensor(digits.target)
train, test = slice(0, 1300), slice(1300, None)

# %%
torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(), torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
for _epoch in range(6):
    for chosen in torch.randperm(1300).split(64):
        loss = torch.nn.functional.cross_entropy(network(images[train][chosen]), labels[train][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
network.eval()
with torch.no_grad():
    print(f"float32: {(network(images[test]).argmax(1) == labels[test]).float().mean():.3f}")

# %% [markdown]
# ## Three ways to the same number of weights
#
# `ratio` is the share of a layer's weights that its factors have, at most. With `admm` the factors are found on the
# grid; with `svd_minmax` they are found in float and rounded; `ptq` rounds the layer itself, and keeps all its weights.

# %%
ways = {
    "whole layers, rounded": ("ptq", ""),
    "factors, rounded": ("factorize", "method.solver=svd_minmax"),
    "factors, found on the grid": ("factorize", "method.solver=admm"),
}
rows = []
for bits in (8, 3):
    for way, (method, settings) in ways.items():
        program = bs.compress(
            network, images[train], method=method, precision=f"int{bits}", backend="reference",
            settings=f"{settings} precision.activations=float32",
        )  # fmt: skip
        right = float((program(images[test]).argmax(1) == labels[test]).float().mean())
        rows.append({"bits": bits, "way": way, "top-1 %": 100 * right, "kB": 1000 * program.size_mb})
table = pandas.DataFrame(rows)
print(table)

# %% [markdown]
# ## Bars

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for panel, figure_of in zip(axes, ("top-1 %", "kB"), strict=True):
    table.pivot(index="bits", columns="way", values=figure_of)[list(ways)].plot.bar(ax=panel, ylabel=figure_of, rot=0)
    panel.legend(fontsize=7)
figure.tight_layout()
figure.savefig("factorization.png")

# %% [markdown]
# ## What became of the layers

# %%
print(program.layers[["name", "kind", "weights", "parameters"]])
