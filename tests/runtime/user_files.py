"""A user's files and a library, for what is told from code."""

#: A user's files: what stands in them, by path.
FILES = {
    "user_code.py": '''
"""A method of the user's own."""
from typing import TYPE_CHECKING

import registering  # noqa: F401
import some_library
from user_helpers import near
from user_helpers.bases import Base

if TYPE_CHECKING:
    from user_helpers import only_types

LIMIT = 3
OTHER = 4


class Handed(Base):
    size = 1

    def asked(self):
        return self.size

    def never_asked(self):
        return "a message"


def work(given: "only_types.Anything", *more: "Annotated"):
    """Do it."""
    from user_helpers.late import late

    if given.asked() < LIMIT:
        raise ValueError(f"{given.size} is too small")
    return near.twice(some_library.thing(late(given)))


def unrelated():
    return OTHER


class Annotated:
    a = 1


if __name__ == "__main__":
    print(work(Handed()))
''',
    "registering.py": "import some_registry\n\nsome_registry.register(1)\n",
    "some_registry.py": "known = []\n\n\ndef register(what):\n    known.append(what)\n",
    "user_helpers/__init__.py": "from user_helpers.offered import offered\n\n__all__ = ['offered']\n",
    "user_helpers/offered.py": "def offered():\n    return 0\n",
    "user_helpers/only_types.py": "Anything = int\n",
    "user_helpers/bases.py": """
class Base:
    def asked(self):
        return 0

    def size(self):
        return 0

    def never_asked(self):
        return 0

    def __str__(self):
        return "one"
""",
    "user_helpers/late.py": "import user_helpers.far as distant\n\n\ndef late(x):\n    return distant.far(x)\n",
    "user_helpers/far.py": """
import statistics as st

try:
    import not_installed
except ImportError:
    not_installed = None


def far(x):
    return st.mean([x.asked(), factor()])


def factor():
    return 7


def not_used():
    return 8
""",
    "user_helpers/near.py": """
from some_library import decorator

from . import offered as _offered
from .constants import *


def twice(x):
    return x * TWO + _offered.offered()


@decorator("by name")
def registered():
    return 1


def _plain():
    return 1
""",
    "user_helpers/constants.py": "TWO = 2\nTHREE = 3\n",
    "some_library/__init__.py": "def thing(x):\n    return x\n\n\ndef decorator(name):\n    return lambda f: f\n",
    "some_library-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: some-library\nVersion: 1.0\n",
    "some_library-1.0.dist-info/RECORD": "some_library/__init__.py,,\n",
}
