"""What every config group shares: a choice is an instance of a class whose fields are its knobs.

Every YAML of ``conf/`` is one instance. A plug-in is a final, frozen dataclass that extends an abstract class of this
package. Its fields are type- and range-checked when it is constructed. Constructing is pure: files, packages and
devices are touched in methods only.
"""

from typing import Annotated, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field

T = TypeVar("T")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]

Share = Annotated[float, Field(gt=0, lt=1)]

Count = Annotated[int, Field(ge=1)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def configurable(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are checked on construction; unknown fields are refused."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: type[T] = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[assignment]
    return checked
