import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_contestants_race_on_the_same_images(sample_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "int8_accuracy.py", "--data", sample_data]
    command += ["--networks", "resnet20+rescaled", "--engines", "onnxruntime"]
    command += ["--peers", "quantize_static minmax", "--images", "25", "--calibration", "16"]
    command += ["--cache", tmp_path / "cache", "--json", tmp_path / "figures.json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["left_out"] == [] and figures["cpu"]
    rows = {(row["network"], row["contestant"]): row for row in figures["rows"]}
    contestants = ("torch fp32", "quantize_static minmax", "bitsweep onnxruntime")
    assert set(rows) == {("resnet20+rescaled", each) for each in contestants}
    for (_, contestant), row in rows.items():
        assert row["images"] == 25 and row["top1"][1] < row["top1"][0] <= row["top1"][2]
        assert (row["sqnr_db"] is None) == (contestant == "torch fp32")
        assert contestant in finished.stdout
    assert rows["resnet20+rescaled", "bitsweep onnxruntime"]["sqnr_db"] > 20


@pytest.mark.slow
def test_sums_whose_channels_differ_are_mended_though_no_remedy_alone_shows_in_the_logits(
    sample_data: Path, tmp_path: Path
) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "int8_accuracy.py", "--data", sample_data]
    command += ["--networks", "mobilenet_v3_small+sums", "--engines", "onnxruntime", "--peers", "--images", "50"]
    command += ["--cache", tmp_path / "cache", "--json", tmp_path / "figures.json"]
    subprocess.run(command, capture_output=True, check=True)
    (row,) = (
        row for row in json.loads((tmp_path / "figures.json").read_text())["rows"] if row["contestant"] != "torch fp32"
    )
    assert row["sqnr_db"] > 15


@pytest.mark.slow
def test_an_onnx_file_is_right_where_it_says_what_it_says_in_float(sample_data: Path, tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    torch.onnx.export(network.eval(), (torch.rand(1, 1, 32, 48),), tmp_path / "net.onnx", verbose=False)
    command = [sys.executable, REPOSITORY / "benchmarks" / "int8_accuracy.py", "--data", sample_data]
    command += ["--networks", tmp_path / "net.onnx", "--engines", "onnxruntime", "--peers", "--images", "20"]
    command += ["--cache", tmp_path / "cache", "--json", tmp_path / "figures.json"]
    subprocess.run(command, capture_output=True, check=True)
    exact, ours = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert exact["top1"][0] == 1 and ours["top1"][0] == ours["agreement"] > 0.8 and ours["sqnr_db"] > 15


@pytest.mark.slow
def test_a_network_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "int8_accuracy.py", "--data", tmp_path, "--networks", "net"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2 and "choose from mobilenet_v3_small" in finished.stderr
