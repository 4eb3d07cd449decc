# %% [markdown]
# # The ResNet of CIFAR: curves, confusions, feature maps, batch sizes
#
# A ResNet-20 is trained, quantized and measured by a sweep. The figures come from the sweep as tables, the pictures as
# files. Digits of 16 x 16 pixels stand for CIFAR-10 here, which is a download of 170 MB: for the real thing set
# `data = "dataset=cifar10 train=default"`.

# %%
import matplotlib.pyplot as plt

import bitsweep as bs

data = "dataset=digits model.image_size=16 train=smoke"
cells = bs.grid(
    f"model=resnet20 {data} precision=fp32,int8 method=none,ptq protocol=smoke protocol.batch_sizes=[1,8,32]"
)
print(bs.describe(bs.plan(cells)))

# %% [markdown]
# ## The sweep
#
# Cells that are impossible, such as int8 without a method, are skipped, and the table says why.

# %%
sweep = bs.run(cells)
table = sweep.frame()
print(table[["method", "precision", "status", "top1", "top1_low", "top1_high", "size_mb", "reason"]].to_string())
cell = sweep.cell(method="ptq", precision="int8")

# %% [markdown]
# ## Curves and confusions
#
# Every cell has the pictures of the report: how the baseline learned, which classes are taken for which, and what the
# layers yield before and after compression.

# %%
pictures = {picture.stem: picture for picture in cell.pictures}
for name in ("curves", "confusion", "feature_maps"):
    plt.figure(figsize=(9, 6))
    plt.imshow(plt.imread(pictures[name]))
    plt.axis("off")
    plt.title(name)
plt.savefig("pictures.png")

# %% [markdown]
# The same from the predictions: which class is taken for which other one.

# %%
wrong = cell.predictions.query("label != predicted")
print(wrong.groupby(["label", "predicted"]).size().sort_values(ascending=False).head())

# %% [markdown]
# ## Batch sizes
#
# Milliseconds an image, of the quantized network and of its float twin on the same engine.

# %%
samples = cell.latency_samples
by_batch = samples.assign(ms=samples.ms / samples.batch).groupby(["batch", "of"]).ms.median().unstack()
print(by_batch)
by_batch.plot.bar(ylabel="ms an image", figsize=(6, 3))
plt.tight_layout()
plt.savefig("batches.png")

# %% [markdown]
# ## What each layer became

# %%
print(cell.layers[["name", "kind", "weights", "activations", "sqnr_db"]].to_string())
