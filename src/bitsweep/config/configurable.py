"""What every config group shares: a choice is an instance of a class whose fields are its knobs.

Every YAML of ``conf/`` is one instance. A plug-in is a final, frozen dataclass that extends an abstract class of this
package. Its fields are type- and range-checked when it is constructed. Constructing is pure: files, packages and
devices are touched in methods only.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field

from bitsweep.errors import UsageError
from bitsweep.runtime.fingerprint import digest, settings

T = TypeVar("T")
#: Marks a knob that reaches no result, so that it is in no key.
NOT_IN_KEYS = object()
#: Marks a knob whose value is a part of a cell's name where it was set.
IN_NAMES = object()
#: Where files lie. What is in them is in keys instead, see `Choice.source`.
Place = Annotated[str, NOT_IN_KEYS]


def spelt(pattern: str, wanted: str) -> pydantic.AfterValidator:
    """What refuses a text that is not of a pattern, and says in words what is wanted."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {wanted}")
        return text

    return pydantic.AfterValidator(check)


Name = Annotated[str, spelt(r"[A-Za-z0-9_.-]+", "a word of letters, digits, dots, hyphens and underscores")]

Share = Annotated[float, Field(gt=0, lt=1)]

Count = Annotated[int, Field(ge=1)]


def _listed(value: Any) -> Any:
    """A single number or name as a list of one."""
    return [value] if isinstance(value, int | float | str) and not isinstance(value, bool) else value


#: As many values as one likes; one alone needs no brackets.
Several = Annotated[tuple[T, ...], pydantic.BeforeValidator(_listed)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def configurable(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are checked on construction; unknown fields are refused.

    A number is a name where names are asked for: ``dataset.classes=[0,180]``.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
    checked: type[T] = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[assignment]
    return checked


@configurable
class Choice:
    """A choice of a config group.

    Attributes:
        name: short stable name, used in tables.
    """

    name: Name

    def source(self) -> str:
        """A fingerprint of the files that its knobs name, the same before and after a download; empty for none.

        Raises:
            UsageError: they are neither here nor to be had.
        """
        return ""


def marked(configured: Any, mark: object) -> list[str]:
    """Names of the knobs of an object that bear a mark."""
    fields = getattr(type(configured), "__pydantic_fields__", {})
    return [name for name, field in fields.items() if mark in field.metadata]


#: Digest of a choice -> question -> answer, of all that was asked about the files that its knobs name.
_answers: dict[str, dict[str, Any]] = {}


def forget_files() -> None:
    """Read files anew where their fingerprints are asked for from now on."""
    _answers.clear()


@contextlib.contextmanager
def files_read_anew(*but: Choice) -> Iterator[None]:
    """Within, answers are of what is in files now, and are not remembered; what is printed was said before.

    Args:
        but: choices whose files are not read again.
    """
    known = dict(_answers)
    for name in known.keys() - {digest(settings(choice)) for choice in but}:
        del _answers[name]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _answers.clear()
        _answers.update(known)


def source_of(choice: Choice) -> str:
    """The fingerprint of a choice's files."""
    return asked_once(choice, "source", choice.source)


def asked_once(choice: Choice, question: str, ask: Callable[[], T]) -> T:
    """What a choice says of its files, which are read once only for each question, see `forget_files`.

    What they hold is said where the first question is asked: the others print nothing. A refusal is an answer, too.

    Raises:
        UsageError: what `ask` raises.
    """
    answers = _answers.setdefault(digest(settings(choice)), {})
    if question not in answers:
        with contextlib.redirect_stdout(io.StringIO()) if answers else contextlib.nullcontext():
            try:
                answers[question] = ask()
            except UsageError as refusal:
                answers[question] = refusal
    if isinstance(answers[question], UsageError):
        raise answers[question].with_traceback(None)
    found: T = answers[question]
    return found


def identity(configured: Any) -> dict[str, Any]:
    """What of a configured object reaches results: its class, its knobs, and what is in the files that they name."""
    apart = marked(configured, NOT_IN_KEYS)
    knobs = {name: value for name, value in settings(configured).items() if name not in apart}
    return knobs | ({"source": source_of(configured)} if isinstance(configured, Choice) else {})
