"""What ended a run, as a message and an exit code: for people, for launchers, for schedulers."""

from __future__ import annotations

import os
import platform
import traceback

import torch

from dsvid.errors import DsvidError
from dsvid.rendezvous import HOSTS
from dsvid.rollcall import RollCall, cause, is_echo
from dsvid.runtime import Ranks, log, say_error
from dsvid.stopping import Stopped


def report(error: Exception, ranks: Ranks) -> int:
    """Say what ended this rank and return its exit code: 2 the user's mistake, 75 stopped and saved, 1 anything else.

    Where ranks are lost, the last line names them. Raises nothing.
    """
    together = torch.distributed.is_initialized()
    if isinstance(error, Stopped):
        log.info("stopped: %s; start the same command again to go on", error)
        return error.exit_code
    if isinstance(error, DsvidError):
        if os.environ.get("DSVID_DEBUG") == "1":
            say_error(_traceback(error))
        # Before the process group exists all ranks meet the same mistake: one voice for each node is enough.
        if ranks.local == 0 or together:
            prefix = f"[rank {ranks.rank}] " if ranks.rank else ""
            say_error(f"{prefix}{type(error).__name__}: {error}")
        return error.exit_code
    say_error(_traceback(error))
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    own = f"rank {ranks.rank} on {platform.node()} failed: {text}"
    if ranks.world == 1 or not together:
        say_error(own)
        return 1
    # A launcher mixes the tracebacks of all ranks, and most of them are echoes of one: the last line names it.
    other = cause(RollCall(ranks, HOSTS), text, lost=is_echo(error))
    say_error(f"{own}\n{other}" if other else own)
    return 1


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
