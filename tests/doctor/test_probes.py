"""What is really run: decoders on a clip, attention of each dtype; no process group is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_probes_run_and_start_no_process_group() -> None:
    code = (
        "import torch.distributed as d\n"
        "from dsvid.doctor.probes import PROBES\n"
        "for name in ('devices', 'compute', 'attention', 'native_ops', 'decoders'):\n"
        "    for f in PROBES[name](): print(name, '|', f.level, '|', f.value)\n"
        "assert not d.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "decoders | ok | pyav: reads H.264" in lines
    assert any(line.startswith("attention | ok | cpu: ") and "bfloat16" in line for line in lines)
    assert not any("| stops |" in line for line in lines)
