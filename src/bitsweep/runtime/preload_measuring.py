"""Imports of the fork server of a job that measures what is made already: what compresses and lowers is left out."""

import gc

gc.disable()  # imports make many objects and no garbage: looking for it took a quarter of their time

import torch.export  # noqa: E402, F401

# isort: split
# PyTorch's OpenMP is to be the first.
import matplotlib.backends.backend_agg  # noqa: E402
import matplotlib.figure  # noqa: E402, F401
import onnxruntime  # noqa: E402, F401
import psutil  # noqa: E402, F401
import sklearn.metrics  # noqa: E402, F401

# What packages have made stays for good: no child looks through it for garbage, nor copies its pages by doing so.
gc.freeze()
gc.enable()
