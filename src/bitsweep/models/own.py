"""A network of the user's own: a class or a function in a file, or in an installed package."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, final

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.factory import Factory
from bitsweep.config.model import Model
from bitsweep.errors import ConfigError
from bitsweep.runtime.fingerprint import digest
from bitsweep.text import say

if TYPE_CHECKING:
    import torch


@final
@configurable
class OwnModel(Model):
    """What a callable makes. Its code is part of every key, with all that it uses from the user's files.

    Attributes:
        factory: ``nets.py:MyNet``, a file, from the working directory or absolute, and a name in it; or
            ``package.module:name``.
        arguments: what it is called with, by keyword; ``num_classes`` besides, if it has such a parameter. Without one
            the head is made anew where it has another number of outputs than the data set has classes.
        head_path: of the head, the layer that learns anew for other classes; empty for the one nearest to the logits.
    """

    has_outputs: ClassVar[bool] = True

    factory: Place = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    head_path: str = ""

    def check(self) -> None:
        """Whether there is such a file or module, and takes these arguments."""
        self._factory.check()
        self._factory.check_arguments("model.arguments", self.arguments, offered=("num_classes",))

    def head_named(self) -> str:
        """What ``head_path`` says."""
        return self.head_path

    def source(self) -> str:
        """The code of the factory, and what is in the file of weights."""
        return digest(self._factory.code(), super().source())

    def build(self, num_classes: int) -> "torch.nn.Module":
        """What the factory makes, on the CPU.

        Raises:
            ConfigError: there is no such factory, it fails, or it makes something else than a network.
        """
        import torch

        if isinstance(self._factory.load(), torch.nn.Module):
            raise ConfigError(
                f"model.factory={self.factory}: is a network, not what makes one; write a function that returns it"
            )
        network = self._factory.make(self.arguments, num_classes=num_classes)
        if not isinstance(network, torch.nn.Module):
            parts = [type(part).__name__ for part in network] if isinstance(network, tuple | list) else []
            made = f"a {type(network).__name__}" + (f" of {', '.join(parts)}" if parts else "")
            raise ConfigError(f"model.factory={self.factory}: makes {made}, no torch.nn.Module; return a network alone")
        if isinstance(network, torch.jit.ScriptModule):
            raise ConfigError(
                f"model.factory={self.factory}: makes a module of TorchScript, which holds no code that can be traced; "
                "return the network that it was made from, or a program of torch.export with model=exported"
            )
        network = _unwrapped(network)
        if any(parameter.is_meta for parameter in network.parameters()):
            raise ConfigError(
                f"model.factory={self.factory}: makes a network without values (device meta); make it on the CPU"
            )
        for dtype in {each.dtype for each in network.parameters()} & {torch.float16, torch.bfloat16}:
            say(f"model.factory={self.factory}: its parameters in {str(dtype)[6:]} become float32")
            network = network.float()
        return network

    @property
    def _factory(self) -> Factory:
        return Factory("model.factory", self.factory)


def _unwrapped(network: "torch.nn.Module") -> "torch.nn.Module":
    """The network in what runs it compiled, or on several GPUs: both would be done here."""
    from torch._dynamo import OptimizedModule
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while isinstance(network, OptimizedModule | DataParallel | DistributedDataParallel):
        network = network._orig_mod if isinstance(network, OptimizedModule) else network.module
    return network
