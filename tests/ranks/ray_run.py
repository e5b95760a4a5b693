"""The Trainer of `trainers` on two workers of a local Ray cluster; a program of its own, for Ray takes a process over.

python -m tests.ranks.ray_run FOLDER        # writes 0.json and 1.json, what each rank told, and state.ckpt there
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.checkout import ROOT

__all__ = ["main", "train_on_worker"]


def train_on_worker(config: dict[str, Any]) -> None:
    """Train on one worker; all of them run this."""
    train: Any = import_module("ray.train")
    ray_lightning: Any = import_module("ray.train.lightning")
    trainers = import_module("tests.ranks.trainers")
    told = trainers.fit(
        trainers.Trained(),
        strategy=ray_lightning.RayDDPStrategy(),
        plugins=[ray_lightning.RayLightningEnvironment()],
        further=[ray_lightning.RayTrainReportCallback()],
        folder=config["log_dir"],
    )
    place = Path(config["folder"], f"{train.get_context().get_world_rank()}.json")
    place.write_text(json.dumps(told), encoding="utf-8")


def main() -> None:
    """Start a cluster of two CPU workers, train, and stop it."""
    ray: Any = import_module("ray")
    train: Any = import_module("ray.train")
    ray_torch: Any = import_module("ray.train.torch")
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="ray") as home:  # a socket's path must be short
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=home, runtime_env={"env_vars": variables})
        try:
            result = ray_torch.TorchTrainer(
                train_on_worker,
                train_loop_config={"folder": str(folder), "log_dir": str(folder / "log")},
                torch_config=ray_torch.TorchConfig(backend="gloo"),
                scaling_config=train.ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1}),
                run_config=train.RunConfig(name="guarded", storage_path=str(folder / "ray")),
            ).fit()
            with result.checkpoint.as_directory() as saved:
                shutil.copy(Path(saved, "checkpoint.ckpt"), folder / "state.ckpt")
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
