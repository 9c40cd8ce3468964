"""Models on the Hugging Face Hub: `hf:owner/name`, `hf:owner/name@revision`. No torch.

The library huggingface_hub keeps them in its own cache, where other programs find them too.
"""

import re
from pathlib import Path

from setdet.errors import MissingExtraError, WeightsError, one_line

PREFIX = "hf:"
_SOURCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?")
# What a detector of `transformers` consists of, and our own files.
_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "best.safetensors"]


def fetch(source: str) -> Path:
    """The folder with a model's files, downloaded if they are not there yet.

    Args:
        source: "hf:owner/name", or "hf:owner/name@revision" for a branch, a tag or a commit.

    Raises:
        WeightsError: there is no network and nothing cached, no such model, or no permission.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise WeightsError(f"'{source}': expected hf:owner/name or hf:owner/name@revision.")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError:
        raise MissingExtraError(module="huggingface_hub", extra="train", purpose=f"Loading {source}") from None
    try:
        return Path(huggingface_hub.snapshot_download(match["repo"], revision=match["revision"], allow_patterns=_FILES))
    except errors.GatedRepoError:
        raise WeightsError(
            f"{source}: its owner asks for consent. Give it on its page, and log in: hf auth login."
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{source}: has no revision '{match['revision']}'.") from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(f"{source}: there is no such model on the Hub, or it is private: hf auth login.") from None
    except Exception as error:  # the errors of its HTTP client have no common base
        raise WeightsError(
            f"{source}: is not in the cache and cannot be downloaded ({one_line(error)}). Check the network and "
            "HF_HUB_OFFLINE, or copy the folder of a machine that has it and name its path."
        ) from None
