import pytest
import torch

from bitsweep.backends.inductor import onednn

NETWORK = torch.nn.Sequential(
    torch.nn.Conv2d(4, 8, 3, stride=2, groups=2), torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 6, 2, groups=2)
)


def test_what_was_executed_is_told_with_its_products(capfd: pytest.CaptureFixture[str]) -> None:
    network = NETWORK.to(memory_format=torch.channels_last)
    images = torch.zeros(3, 4, 9, 9).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        kernels = onednn.executed(lambda: network(images))
    macs = {kernel.op.split()[0]: kernel.macs for kernel in kernels if kernel.macs}
    assert macs == {"convolution": 3 * 8 * 4 * 4 * 2 * 3 * 3, "deconvolution": 3 * 8 * 4 * 4 * 3 * 2 * 2}
    assert not any(kernel.integer for kernel in kernels)
    print("seen")
    assert capfd.readouterr().out == "seen\n"


@pytest.mark.parametrize(
    ("sizes", "operation", "macs"),
    [
        ("mb2_g4ic16oc8_ih9oh7kh3sh1dh0ph0_iw9ow7kw3sw1dw0pw0", "convolution", 2 * 7 * 7 * 8 * 4 * 9),
        ("g4mb2_ic16oc8_ih9oh7kh3sh1dh0ph0_iw9ow7kw3sw1dw0pw0", "convolution", 2 * 7 * 7 * 8 * 4 * 9),
        ("mb5_ic3oc4_iw9ow7kw3sw1dw0pw0", "convolution", 5 * 7 * 4 * 3 * 3),
        ("mb5ic32oc10", "inner_product", 5 * 32 * 10),
        ("mb5ic32ih2iw3oc10", "inner_product", 5 * 32 * 6 * 10),
        ("5x32:32x10", "matmul", 5 * 32 * 10),
        ("7x5x32:7x32x10", "matmul", 7 * 5 * 32 * 10),
        ("16x3x3x3", "reorder", 0),
    ],
)
@pytest.mark.parametrize(("source", "integer"), [("src:u8", True), ("src:s8", True), ("src:f32", False)])
def test_a_line_of_its_log(sizes: str, operation: str, macs: int, source: str, integer: bool) -> None:
    line = f"onednn_verbose,v1,primitive,exec,cpu,{operation},jit:avx2,undef,{source}::x wei:s8::x,,,{sizes},0.1\n"
    kernel = onednn.parse(line, name="first")
    told = f"{operation} jit:avx2 {source.removeprefix('src:')}"
    assert (kernel.name, kernel.op, kernel.macs, kernel.integer) == ("first", told, macs, integer)
