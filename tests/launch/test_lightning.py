# SPDX-License-Identifier: MIT
"""Lightning's Trainer under the launcher: nothing crosses nodes in training, and the checkpoint
that it saves through fsspec gets the average."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from harness import truth

pytest.importorskip("pytorch_lightning")

SCRIPT = """
    import json, sys, warnings
    warnings.filterwarnings("ignore")
    import torch
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 2)

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch, index):
            self.log("loss", self.net(batch[0]).square().mean(), sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def on_train_end(self):
            state = {name: value.tolist() for name, value in self.state_dict().items()}
            json.dump(state, open(f"own{self.global_rank}.json", "w"))

    def main():
        torch.manual_seed(0)
        data = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4)
        trainer = pl.Trainer(
            strategy="ddp", accelerator="cpu", devices=4, max_epochs=2, logger=False,
            enable_progress_bar=False, enable_model_summary=False,
        )
        model = Model()
        trainer.fit(model, data, *([data] if "validate" in sys.argv else []))
        import lofi
        if trainer.global_rank == 0:
            json.dump(lofi.stats()["cross_bytes"], open("bytes.json", "w"))

    if __name__ == "__main__":
        main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "validate"])
def test_the_checkpoint_gets_the_average(tmp_path, how):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    env = {**os.environ, "LOFI_NODE_SIZE": "2", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command += ["-m", "lofi", "train.py", how]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    sent = json.loads((tmp_path / "bytes.json").read_text())
    assert sent["training"] == 0 and sent["setup"] > 0
    saved = sorted((tmp_path / "checkpoints").iterdir())
    averaged = [path for path in saved if ".lofi." in path.name] or saved
    assert len(averaged) == 1 and "the average is in" in done.stderr
    content = torch.load(averaged[0], weights_only=True)
    own = [json.loads((tmp_path / f"own{rank}.json").read_text()) for rank in (0, 2)]
    for name, value in content["state_dict"].items():
        want = truth.mean([torch.tensor(state[name]) for state in own])
        assert torch.equal(value, want), name
    sys.path.insert(0, str(tmp_path))
    try:
        import train

        model = train.Model.load_from_checkpoint(averaged[0], weights_only=True)
        assert torch.equal(model.net.bias, content["state_dict"]["net.bias"])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("train", None)
