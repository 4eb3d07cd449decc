"""Tests that need an NVIDIA GPU, or that are run on one too where there is one."""

import pytest
import torch

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
