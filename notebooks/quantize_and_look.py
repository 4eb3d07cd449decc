# %% [markdown]
# # Train, quantize, and look
#
# A small convolutional network learns digits. Its weights and activations become 8-bit integers by the rule of three
# standard deviations, step by step. The pictures show what the ranges of the codes keep and what they cut off.

# %%
import matplotlib.pyplot as plt
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
    torch.nn.Flatten(), torch.nn.Linear(128, 10),
)  # fmt: skip
optimizer, losses = torch.optim.AdamW(network.parameters(), lr=0.01), []
for _epoch in range(6):
    for chosen in torch.randperm(1300).split(64):
        loss = torch.nn.functional.cross_entropy(network(images[train][chosen]), labels[train][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
network.eval()
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.savefig("loss.png")

# %% [markdown]
# ## Quantize, step by step
#
# Ranges are chosen on training images. These have labels here, so that every step is evaluated on them: weights first,
# then activations, then biases, and at last everything on integers. With 8 bits no step costs anything here; with 3
# bits for the weights and 4 for the activations one sees which step does.

# %%
batches = [(images[train], labels[train])]
program = bs.compress(network, batches, method="three_sigma", precision="int8_symmetric")
print(program.tables["stages"].to_string(index=False))
coarse = "precision.weights.bits=3 precision.activations.bits=4"
coarse_program = bs.compress(network, batches, method="three_sigma", precision="int8_symmetric", settings=coarse)
print(coarse_program.tables["stages"].to_string(index=False))

# %% [markdown]
# ## Weights
#
# Each histogram is of one layer's weights. Lines are the values of the smallest and the largest code: what lies beyond
# them is cut off.

# %%
layers = program.layers.set_index("name")
figure, axes = plt.subplots(1, len(layers), figsize=(4 * len(layers), 3), layout="constrained")
for panel, (name, layer) in zip(axes, layers.iterrows(), strict=True):
    panel.hist(network.get_submodule(name).weight.detach().flatten().numpy(), bins=60)
    for end in layer.weight_range:
        panel.axvline(end, color="C1")
    panel.set_title(f"{layer.kind} {name}: {100 * layer.weight_clipped:.2f} % cut off")
    panel.set_xlabel("weight")
axes[0].set_ylabel("how many")
figure.savefig("weights.png")

# %% [markdown]
# ## Activations
#
# What each layer reads, on the test images. Behind a ReLU nothing is negative, and half of the codes of a symmetric
# format stand for nothing.

# %%
inputs = {}
hooks = [
    network.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    for name in layers.index
]
with torch.no_grad():
    exact = network(images[test])
print(f"float32: {(exact.argmax(1) == labels[test]).float().mean():.3f} of the test images")
for hook in hooks:
    hook.remove()
figure, axes = plt.subplots(1, len(layers), figsize=(4 * len(layers), 3), layout="constrained")
for panel, (name, layer) in zip(axes, layers.iterrows(), strict=True):
    panel.hist(inputs[name].flatten().numpy(), bins=60, log=True)
    for end in layer.activation_range or ():
        panel.axvline(end, color="C1")
    panel.set_title(f"read by {layer.kind} {name}: {layer.activations}", fontsize=8)
    panel.set_xlabel("value")
axes[0].set_ylabel("how many (logarithmic)")
figure.savefig("activations.png")

# %% [markdown]
# ## Other ways to choose ranges, and to round
#
# None of these images was trained or calibrated on.

# %%
for method, settings in [("ptq", "method.weight_range=minmax"), ("ptq", "method.weight_range=mse"), ("gptq", "")]:
    for bits in (8, 2):
        other = bs.compress(network, images[train], method=method, settings=f"{settings} precision.weights.bits={bits}")
        right = (other(images[test]).argmax(1) == labels[test]).float().mean()
        print(f"{method} {settings} {bits} bits: {right:.3f} of the test images")
