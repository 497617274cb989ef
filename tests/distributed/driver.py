"""One rank of a test: `dsvid.train.main` for each argument list of a JSON file, in one process: imports cost most."""

import json
import sys
from pathlib import Path

from dsvid.train import main

for words in json.loads(Path(sys.argv[1]).read_text()):
    code = main(words)
    if code:
        sys.exit(code)
