"""One rank of a test with kills: `dsvid.train.main`, ended by SIGKILL at an instant that the test has chosen.

argv: a JSON file {"argv", "ids", "kill"}. "kill": ["after", seconds behind the first step], or ["in save", what, n]: at
the n-th time that a save of this life comes to `what`: "write" (half of a file is on the disk), "written" (all files,
no manifest), "manifest" (not renamed yet), "renamed" (no pointer yet), "pointed" (older ones not removed yet).
Which videos each finished step saw is appended to "ids".
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from dsvid import checkpoint, train
from dsvid.watchdog import Watch

RANK = int(os.environ["RANK"])
plan = json.loads(Path(sys.argv[1]).read_text())
ids = Path(plan["ids"] + f"-{RANK}.jsonl")
met: Counter[str] = Counter()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reach(what: str) -> None:
    met[what] += 1
    if plan["kill"][:2] == ["in save", what] and met[what] == plan["kill"][2]:
        die()


plain_finish, plain_write = Watch.finish_step, checkpoint.HashedFile.write
plain_publish, plain_text = checkpoint._publish, checkpoint.publish_text


def finish_step(self: Watch, step: int) -> int:
    if not met["step"] and plan["kill"][0] == "after":
        threading.Timer(plan["kill"][1], die).start()
    met["step"] += 1
    with ids.open("a") as handle:
        handle.write(json.dumps([step, self.clips["index"].tolist()]) + "\n")
    return plain_finish(self, step)


def write(self: checkpoint.HashedFile, data: Any) -> int:
    count = plain_write(self, data)
    self.flush()
    reach("write")
    return count


def publish(folder: Path, target: Path, *more: Any) -> None:
    reach("written")
    plain_publish(folder, target, *more)


def text(path: Path, words: str) -> None:
    if path.name == "latest":
        reach("renamed")
    plain_text(path, words)
    if path.name == checkpoint.MANIFEST:
        reach("manifest")
    if path.name == "latest":
        reach("pointed")


Watch.finish_step, checkpoint.HashedFile.write = finish_step, write  # type: ignore[method-assign]
checkpoint._publish, checkpoint.publish_text = publish, text
sys.exit(train.main(plan["argv"]))
