"""The errors a user can mend. Each says what failed, what was found, what was expected and the edit that mends it."""

from __future__ import annotations


class DsvidError(Exception):
    """A mistake that the user can mend; ends the program with exit code 2 and no traceback.

    `what` names the path or key; `found`, `expected` and `fix` are optional one-line texts.
    """

    exit_code = 2

    def __init__(self, what: str, *, found: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.fix = fix
        lines = [what]
        if found is not None:
            lines.append(f"  found:    {found}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if fix is not None:
            lines.append(f"  fix:      {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when a loader worker hands the error to its parent process."""
        return (_rebuild, (type(self), self.what, self.found, self.expected, self.fix))


def _rebuild(kind: type[DsvidError], what: str, found: object, expected: object, fix: str | None) -> DsvidError:
    return kind(what, found=found, expected=expected, fix=fix)


class RecipeError(DsvidError):
    """The recipe, the DeepSpeed JSON or a command-line override is wrong."""


class DataError(DsvidError):
    """A list, a video or a frame cannot be used."""


class CheckpointError(DsvidError):
    """A run folder, a checkpoint or a weight file cannot be used."""


class NoDecoderError(CheckpointError):
    """Weights of an encoder alone, where an autoencoder is needed."""


class OpError(DsvidError):
    """The native op is asked for but missing, or was called with tensors that it does not take."""
