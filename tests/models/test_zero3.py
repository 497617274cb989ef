"""Models whose parameters are used outside a submodule (class token, learned tables) under `deepspeed.zero.Init`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# One rank, every parameter partitioned (no persistence): what is not gathered has no values and fails.
_TRAIN = """
import os, socket, torch
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port))
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False, rank=0, world_size=1)
from dataclasses import replace
from torch.utils.checkpoint import checkpoint
from dsvid.engine import fill_parameters
from dsvid.models.init import initial_value
from dsvid.models.spec import ModelSpec, build_model
from dsvid.models.vit import video_patches

zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False,
          "zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
sizes = dict(dim=32, depth=2, heads=2, patch=8, mlp_hidden=64, num_classes=3, tubelet=1, head_init_scale=1.0)
intern = ModelSpec("classify", "internvideo2_custom", 2, 16, pool_heads=4, pool_dim=24, **sizes)
vivit = ModelSpec("classify", "custom", 2, 16, positions="learned", cls_token=True, pool="first",
                  final_norm="tokens", **sizes)

class Objective(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.model = build_model(spec, seed=None)

    def forward(self, patches):
        return self.model.forward_patches(patches).square().sum()

for spec in (intern, replace(intern, positions="learned_separate"), vivit):
    with deepspeed.zero.Init(config_dict_or_path=config):
        objective = Objective(spec)
    options = objective.model.init_options()
    fill_parameters(objective, lambda name, shape: initial_value(name, shape, 0, **options))
    objective.model.set_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=False))
    plain = Objective(spec)
    plain.model = build_model(spec, seed=0)
    patches = video_patches(torch.randn(2, 3, 2, 16, 16), plain.model.grid)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    engine, *_ = deepspeed.initialize(
        model=objective, config=config, optimizer=torch.optim.SGD(objective.parameters(), lr=0.05))
    for step in range(3):
        loss, expected = engine(patches), plain(patches)
        assert torch.allclose(loss, expected, rtol=1e-4), (spec.arch, step, loss, expected)
        engine.backward(loss)
        engine.step()
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
print("3 models trained")
"""


def test_partitioned_models_train_as_whole_ones_do() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _TRAIN], capture_output=True, text=True, cwd=root, timeout=300)
    assert "3 models trained" in done.stdout, done.stderr[-3000:]
