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

        def on_train_start(self):
            keep(self, f"begin{self.global_rank}.json")

        def on_train_end(self):
            keep(self, f"own{self.global_rank}.json")

    def keep(model, path):
        state = {name: value.tolist() for name, value in model.state_dict().items()}
        json.dump(state, open(path, "w"))

    def main():
        torch.manual_seed(0)
        data = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4)
        trainer = pl.Trainer(
            strategy="ddp", accelerator="cpu", devices=4, logger=False,
            max_epochs=3 if sys.argv[1] == "resume" else 2,
            enable_progress_bar=False, enable_model_summary=False,
        )
        model = Model()
        resumed = sys.argv[2] if sys.argv[1] == "resume" else None
        validation = [data] if sys.argv[1] == "validate" else []
        trainer.fit(model, data, *validation, ckpt_path=resumed)
        import lofi
        if trainer.global_rank == 0:
            json.dump(lofi.stats()["cross_bytes"], open("bytes.json", "w"))

    if __name__ == "__main__":
        main()
"""


ENV = {"LOFI_NODE_SIZE": "2", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "lofi")


def run(folder, *words):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def state_in(path):
    state = json.loads(path.read_text())
    return {name: torch.tensor(values) for name, values in state.items()}


def is_same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "validate"])
def test_the_checkpoint_gets_the_average(tmp_path, how):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    said = run(tmp_path, *TORCHRUN, "train.py", how)
    sent = json.loads((tmp_path / "bytes.json").read_text())
    assert sent["training"] == 0 and sent["setup"] > 0
    saved = sorted((tmp_path / "checkpoints").iterdir())
    averaged = [path for path in saved if ".lofi." in path.name] or saved
    assert len(averaged) == 1 and "the average is in" in said
    own = [state_in(tmp_path / f"own{rank}.json") for rank in (0, 2)]
    mean = truth.mean_of_states(*own)
    assert is_same(torch.load(averaged[0], weights_only=True)["state_dict"], mean)

    run(tmp_path, *TORCHRUN, "train.py", "resume", str(averaged[0]))
    assert json.loads((tmp_path / "bytes.json").read_text())["training"] == 0
    for rank in range(4):
        assert is_same(state_in(tmp_path / f"begin{rank}.json"), mean)
    sys.path.insert(0, str(tmp_path))
    try:
        import train

        model = train.Model.load_from_checkpoint(averaged[0], weights_only=True)
        assert torch.equal(model.net.bias, mean["net.bias"])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("train", None)
