"""What weights are called in tables and pictures."""

from collections.abc import Sequence
from pathlib import Path


def distinct_names(weights: Sequence[str]) -> list[str]:
    """A short name for each, no two alike: of a path as few of its last parts as tell it from the others."""
    paths = [Path(one).resolve().parts if Path(one).exists() else (one,) for one in weights]
    names = []
    for index, parts in enumerate(paths):
        others = paths[:index] + paths[index + 1 :]
        ends = (parts[-count:] for count in range(1, len(parts) + 1))
        own = next((end for end in ends if all(other[-len(end) :] != end for other in others)), parts)
        names.append("/".join(own).removesuffix(".safetensors"))
    return [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
