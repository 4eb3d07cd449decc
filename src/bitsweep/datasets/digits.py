"""The 1,797 handwritten digits that come inside scikit-learn: real images without any download.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from bitsweep.config.configurable import Share, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data.sampling import stratified_share
from bitsweep.results import RawData, Split
from bitsweep.runtime.environment import version_of


@configurable
class Digits(Dataset):
    """Ten classes of grey 8 x 8 images.

    Attributes:
        test_share: part of each class held out for testing; the data has no split of its own.
    """

    test_share: Share = 0.25

    def source(self) -> str:
        """The version of the package that the images come in."""
        return f"scikit-learn {version_of('scikit-learn')}"

    def decode(self) -> RawData:
        """Read the images; their 17 grey levels are spread over 0 to 255."""
        import numpy as np
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
        labels = bunch.target.astype(np.int64)
        test = stratified_share(labels, self.test_share, self.split_seed)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return RawData(
            train=Split(images=images[train], labels=labels[train]),
            test=Split(images=images[test], labels=labels[test]),
            classes=tuple(str(name) for name in bunch.target_names),
        )
