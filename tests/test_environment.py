import torch

from bitsweep.environment import current_gpu


def test_the_gpu_is_the_one_that_pytorch_sees() -> None:
    gpu = current_gpu()
    if not torch.cuda.is_available():
        assert gpu is None
    else:
        assert gpu is not None
        assert gpu.model == torch.cuda.get_device_name(0)
        assert gpu.architecture == "sm{}{}".format(*torch.cuda.get_device_capability(0))
