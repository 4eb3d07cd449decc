"""What a knob ``augment`` may say: how training images are changed at random, step by step."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator

#: Whole images moved by up to an eighth of their size; and mirrored.
MOVES = ("shift", "shift_flip")
#: A transform, with what it is made with, by keyword.
Step = dict[str, dict[str, Any]]


def _steps(value: Any) -> tuple[Step, ...]:
    if value == "none":
        return ()
    given = value if isinstance(value, list | tuple) else [value]
    steps = tuple(_step(each, f"step {number} " if given[1:] else "") for number, each in enumerate(given, 1))
    for name in [name for step in steps[1:] for name in step if name in MOVES]:
        raise ValueError(f"{name} must be the first of the list")
    return steps


def _step(value: Any, which: str) -> Step:
    if isinstance(value, str) and (value in MOVES or value[:1].isupper()):
        return {value: {}}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, arguments),) = value.items()
        if arguments is None or (isinstance(arguments, Mapping) and (name not in MOVES or not arguments)):
            within = {key: _steps(each) for key, each in (arguments or {}).items() if key == "transforms"}
            return {str(name): {**(arguments or {}), **within}}
    raise ValueError(
        f"{which}should be none, {', '.join(MOVES)}, a transform of torchvision.transforms.v2, or a list of them, as "
        "in [RandomHorizontalFlip,{RandomRotation:{degrees:10}}]"
    )


Augment = Annotated[tuple[Step, ...], PlainValidator(_steps)]
