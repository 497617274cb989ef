"""One rank of a test: `dsvid.train.main` (or `dsvid eval …`) for each argument list of a JSON file, in one process:
imports cost most.
"""

import json
import sys
from pathlib import Path

import torch

from dsvid.cli import main as dsvid
from dsvid.train import main as train

for words in json.loads(Path(sys.argv[1]).read_text()):
    code = dsvid(words) if words[0] == "eval" else train(words)
    if code:
        sys.exit(code)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter: an abort now and then
