"""Every error that setdet raises on purpose, in one tree.

    SetdetError                 exit code 1
    ├── UsageError              exit code 2: the request itself is wrong
    │   ├── ConfigError         unknown key, value out of range
    │   ├── OutputError         an output folder in use, a file that would be overwritten
    │   │   └── WriteError      exit code 1: a file that cannot be written, such as on a full disk
    │   └── MissingExtraError   an optional dependency is not installed
    ├── DataError               a data set, annotation file or picture is broken
    │   ├── UnknownFormatError  a folder in none of the known layouts
    │   └── ImageError          one picture that cannot be decoded
    ├── WeightsError            a checkpoint is broken, unsafe, or belongs to another model
    ├── ExportError             an exported file does not find what the model finds
    └── TrainingError           training cannot go on (loss not finite, nothing to train on)

A message says what was found, where, what was expected, and how to fix it.
"""


class SetdetError(Exception):
    """Base of all errors with a message meant for the user. `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(SetdetError):
    """The command or call was wrong; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is wrong."""


class OutputError(UsageError):
    """An output path is in use or cannot be written."""


class WriteError(OutputError):
    """A file cannot be written: the disk is full, or the folder is not to be written to."""

    exit_code = 1


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message quotes the pip command that installs it."""

    def __init__(self, *, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{module}', which is not installed. "
            f"Install it with: pip install 'setdet[{extra}]'"
        )


class DataError(SetdetError):
    """A data set or one of its files is broken."""


class UnknownFormatError(DataError):
    """A path holds no data set in a known format."""


class ImageError(DataError):
    """A picture cannot be decoded."""


class WeightsError(SetdetError):
    """A checkpoint cannot be loaded as asked."""


class ExportError(SetdetError):
    """An export has not passed the comparison with its model; nothing was written."""


class TrainingError(SetdetError):
    """Training cannot start or go on."""


def one_line(error: Exception, *, last: bool = False) -> str:
    """What an error of another library says, to quote in a message: its first line, or its last; else its type."""
    lines = str(error).strip().splitlines()
    return lines[-1 if last else 0].strip().rstrip(".") if lines else type(error).__name__
