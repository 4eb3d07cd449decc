"""Names of outputs and layers that settings give, against networks that have others."""

from pathlib import Path

import pytest

from bitsweep import naming
from bitsweep.errors import ConfigError
from bitsweep.naming import look_for
from bitsweep.runtime.progress import silent
from tests.test_cell import cell

NETS = """
from torch import nn

class Two(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return {"logits": self.head(features), "features": features}

def fails(num_classes):
    raise RuntimeError("no such thing")
"""


@pytest.mark.parametrize(
    ("made", "output", "layers", "message"),
    [
        ("Two", "", ("body",), ""),
        ("Two", 1, ("body", "head"), "method.keep=head: no such layer; choose from body"),
        ("Two", "logit", (), "model.output=logit: the network yields logits, features: choose one of them"),
        ("Two", "logits", ("stem",), "method.keep=stem: no such layer; choose from body, head"),
        ("fails", "logits", ("stem",), ""),
        ("Two@body", "", (), ""),
        ("Two@fc", "", (), "model.head_path=fc: the network has no such part with weights; leave it out for head"),
    ],
)
def test_parts_are_looked_for_in_the_network(
    made: str, output: str | int, layers: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_with_names.py").write_text(NETS)
    factory, _, head = made.partition("@")
    model = cell(
        model="own", model__factory=f"nets_with_names:{factory}", model__output=output, model__image_size=16,
        model__head_path=head,
    ).model  # fmt: skip
    if message:
        with pytest.raises(ConfigError) as caught:
            look_for(model=model, layers=layers, folder=tmp_path, progress=silent)
        assert str(caught.value) == message
    else:
        look_for(model=model, layers=layers, folder=tmp_path, progress=silent)


def test_a_network_is_built_once_for_a_setting_and_only_where_names_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(naming, "_wrong", lambda model, layers: asked.append(layers) or f"no {layers[0]}")
    kept = [cell(method="factorize", method__keep=["stem"], seed=seed) for seed in (0, 1)]
    assert naming.wrong_names([cell(), *kept], {}) == dict.fromkeys(kept, "no stem")
    assert asked == [("stem",)]
