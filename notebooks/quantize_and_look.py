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
plt.figure(figsize=(6, 3))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.savefig("loss.png")

# %% [markdown]
# ## Quantize, step by step
#
# Ranges are chosen on training images. These have labels here, so that every step is evaluated on them: weights first,
# then activations, then biases, and at last everything on integers.

# %%
program = bs.compress(network, [(images[train], labels[train])], method="three_sigma", precision="int8_symmetric")
print(program.tables["stages"])

# %% [markdown]
# ## Weights
#
# Each histogram is of one layer's weights. Lines are the values of the smallest and the largest code.

# %%
layers = program.layers.set_index("name")
figure, axes = plt.subplots(1, len(layers), figsize=(4 * len(layers), 3))
for panel, (name, layer) in zip(axes, layers.iterrows(), strict=True):
    panel.hist(network.get_submodule(name).weight.detach().flatten().numpy(), bins=60)
    for end in layer.weight_range:
        panel.axvline(end, color="C1")
    panel.set_title(f"{layer.kind} {name}: {100 * layer.weight_clipped:.2f} % cut off")
figure.savefig("weights.png")

# %% [markdown]
# ## Activations
#
# What each layer reads, on the test images.

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
figure, axes = plt.subplots(1, len(layers), figsize=(4 * len(layers), 3))
for panel, (name, layer) in zip(axes, layers.iterrows(), strict=True):
    panel.hist(inputs[name].flatten().numpy(), bins=60, log=True)
    for end in layer.activation_range or ():
        panel.axvline(end, color="C1")
    panel.set_title(f"read by {layer.kind} {name}: {layer.activations}", fontsize=8)
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
