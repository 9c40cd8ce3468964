"""Options of engines that several verbs share."""

from typing import Literal, get_args

from setdet.errors import UsageError

_Precision = Literal["fp32", "bf16", "fp16"]
_Hint = Literal["latency", "throughput"]


def precision_named(name: str | None) -> _Precision | None:
    """The precision that `--precision` names; None: none was named.

    Raises:
        UsageError: there is no such precision.
    """
    for known in get_args(_Precision):
        if name == known:
            return known
    if name is None:
        return None
    raise UsageError(f"--precision {name}: there is no such precision. Known: {', '.join(get_args(_Precision))}.")


def hint_named(name: str) -> _Hint:
    """What `--hint` names.

    Raises:
        UsageError: there is no such hint.
    """
    for known in get_args(_Hint):
        if name == known:
            return known
    raise UsageError(f"--hint {name}: there is no such hint. Known: {', '.join(get_args(_Hint))}.")
