"""Reversible tables between our tensor names and other people's.

A table maps the path of a module of ours to the path of the same module elsewhere; a tensor is renamed by the
longest module path that it starts with. Nothing is guessed: a name that no entry covers is an error.
"""

from setdet.weights.remap.authors import (
    authors_buffers,
    from_authors_backbone,
    from_authors_v1,
    from_authors_v2,
    is_authors_v2,
    to_authors_v1,
    to_authors_v2,
)
from setdet.weights.remap.table import State
from setdet.weights.remap.transformers import (
    canonical_transformers_names,
    from_transformers,
    to_transformers,
    transformers_buffers,
)

__all__ = [
    "State",
    "authors_buffers",
    "canonical_transformers_names",
    "from_authors_backbone",
    "from_authors_v1",
    "from_authors_v2",
    "from_transformers",
    "is_authors_v2",
    "to_authors_v1",
    "to_authors_v2",
    "to_transformers",
    "transformers_buffers",
]
