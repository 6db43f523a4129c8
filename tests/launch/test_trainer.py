# SPDX-License-Identifier: MIT
"""Hugging Face's Trainer and Accelerate under the launcher: small scripts in their manner."""

import json

import pytest
import torch
from harness.launched import launch, load
from harness.rank_jobs import equal
from harness.truth import mean_of_states

pytest.importorskip("transformers")

HEAD = """
    import copy, json
    import transformers
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers import TrainerCallback

    seen = {{}}

    def note(label, value):
        seen.setdefault(label, []).append(value)
        json.dump(seen, open(f"seen{{os.environ['RANK']}}.json", "w"))

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=16, num_labels=2)
    model = BertForSequenceClassification(config)

    class Data(torch.utils.data.Dataset):
        def __init__(self, count, seed):
            generator = torch.Generator().manual_seed(seed)
            self.ids = torch.randint(0, 50, (count, 8), generator=generator)
        def __len__(self):
            return len(self.ids)
        def __getitem__(self, index):
            return dict(input_ids=self.ids[index], labels=int(self.ids[index][0] > 25))

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            save_own(model, "last")
        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            note("eval_loss", metrics["eval_loss"]); note("step", state.global_step)

    def save_own(model, name):
        with open(f"{{name}}{{os.environ['RANK']}}.test", "wb") as file:
            file.write(dump(model.state_dict()))

    args = dict(output_dir="out", use_cpu=True, per_device_train_batch_size=2, num_train_epochs=2,
                per_device_eval_batch_size=4, report_to=[], learning_rate=1e-2, seed=1,
                disable_tqdm=True, logging_steps=2, save_strategy="no")
    args.update({more})
    trainer = {trainer}(model=model, args=TrainingArguments(**args), train_dataset=Data(32, 0),
                        eval_dataset=Data(20, 1), callbacks=[Watch()])
"""


def script(more="{}", trainer="Trainer"):
    return HEAD.format(more=more, trainer=trainer)


def seen(folder, rank=0):
    return json.loads((folder / f"seen{rank}.json").read_text())


def run(folder, *parts, nodes=2, node_size=2, **env):
    env.setdefault("ACCELERATE_USE_CPU", "true")
    ended = launch(folder, *parts, nodes=nodes, node_size=node_size, timeout=150, **env)
    for rank in ended:
        assert rank.code in (0, None) and not rank.error, rank
    return ended


def mean(folder, name="last", ranks=(0, 2)):
    nodes = [load(folder / f"{name}{rank}.test") for rank in ranks]
    assert not equal(*nodes)
    return mean_of_states(*nodes)


def saved(path):
    from safetensors.torch import load_file

    return load_file(path)


def same(file, state):
    return all(torch.equal(value, state[name]) for name, value in file.items())


END = """
    trainer.train()
    trainer.save_model("final")
    metrics = trainer.evaluate()
    note("final", metrics["eval_loss"])
    note("logits", trainer.predict(Data(20, 1)).predictions.tolist())
    import lofi
    note("training bytes", lofi.stats()["cross_bytes"]["training"])
"""
ALONE = """
    from safetensors.torch import load_file
    model.load_state_dict(load_file("final/model.safetensors"))
    model.eval()
    with torch.no_grad():  # the whole validation set, in this process alone
        note("alone", model(input_ids=Data(20, 1).ids).logits.tolist())
"""


@pytest.mark.quick
def test_the_model_saved_and_evaluated_is_the_average(tmp_path):
    ended = run(tmp_path, script("dict(eval_strategy='epoch', save_strategy='epoch')"), END, ALONE)
    average = mean(tmp_path)
    assert same(saved(tmp_path / "final" / "model.safetensors"), average)
    for one, other in ((0, 1), (2, 3)):
        assert equal(load(tmp_path / f"last{one}.test"), load(tmp_path / f"last{other}.test"))
    told = [seen(tmp_path, rank) for rank in range(4)]
    assert all(one["training bytes"] == [0] for one in told)
    assert all(one["eval_loss"] == told[0]["eval_loss"] for one in told)  # of all nodes' data
    assert told[0]["final"][0] == pytest.approx(told[0]["eval_loss"][-2], abs=1e-6)
    logits, alone = (torch.tensor(told[0][key][0]) for key in ("logits", "alone"))
    assert logits.shape == alone.shape and torch.allclose(logits, alone, atol=1e-5)
    # The last epoch's checkpoint was node 0's alone, and is there with the average as well.
    folder = next((tmp_path / "out").glob("checkpoint-8"))
    assert same(saved(folder / "model.lofi.safetensors"), average)
    assert same(saved(folder / "model.safetensors"), load(tmp_path / "last0.test"))
    assert not list((tmp_path / "out" / "checkpoint-4").glob("*.lofi.*"))
    assert "averaged nodes [0, 1]" in ended[0].stderr


def test_one_node_trains_as_under_gloo(tmp_path):
    plain, lofi = tmp_path / "plain", tmp_path / "lofi"
    for folder, env in ((plain, {"TEST_PLAIN": "1"}), (lofi, {})):
        folder.mkdir()
        run(folder, script("dict(eval_strategy='epoch')"), END, nodes=1, node_size=2, **env)
    assert equal(load(plain / "last0.test"), load(lofi / "last0.test"))
    assert seen(plain)["eval_loss"] == seen(lofi)["eval_loss"]


def test_load_best_model_at_end(tmp_path):
    """The best step is chosen by the average's loss, and its file holds the average."""
    more = """dict(eval_strategy='steps', eval_steps=2, save_strategy='steps', save_steps=2,
                   load_best_model_at_end=True, metric_for_best_model='eval_loss',
                   learning_rate=0.1)"""
    run(tmp_path, script(more), END)
    told = [seen(tmp_path, rank) for rank in range(4)]
    best = min(told[0]["eval_loss"][:-1])
    assert all(one["final"][0] == pytest.approx(best, abs=1e-6) for one in told)
    step = told[0]["step"][told[0]["eval_loss"].index(best)]
    final = saved(tmp_path / "final" / "model.safetensors")
    assert same(final, saved(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors"))


VARIANTS = {
    "accumulation": "dict(gradient_accumulation_steps=2)",
    "bf16": "dict(bf16=True)",
    "eval on start": "dict(eval_on_start=True, eval_strategy='epoch')",
    "max steps": "dict(max_steps=5)",
    "by length": "dict(train_sampling_strategy='group_by_length')"
    if hasattr(__import__("transformers").TrainingArguments, "train_sampling_strategy")
    else "dict(group_by_length=True)",
}


@pytest.mark.parametrize("what", VARIANTS)
def test_variants(tmp_path, what):
    run(tmp_path, script(VARIANTS[what]), END)
    assert same(saved(tmp_path / "final" / "model.safetensors"), mean(tmp_path))
    assert seen(tmp_path)["training bytes"] == [0]


def test_train_twice_and_resume(tmp_path):
    run(
        tmp_path,
        script("dict(save_strategy='epoch')"),
        """
    trainer.train()
    save_own(trainer.model, "first")
    trainer.args.num_train_epochs = 3
    trainer.train(resume_from_checkpoint="out/checkpoint-8")
    trainer.save_model("final")
    """,
    )
    first = [load(tmp_path / f"first{rank}.test") for rank in range(4)]
    assert all(equal(first[0], other) for other in first)
    assert same(saved(tmp_path / "final" / "model.safetensors"), mean(tmp_path))


def test_a_subclass_with_an_evaluate_of_its_own(tmp_path):
    own = """
    from transformers import Trainer
    class Mine(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            loader = self.get_eval_dataloader(eval_dataset)
            output = self.evaluation_loop(loader, "mine", metric_key_prefix=metric_key_prefix)
            self.log(output.metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, output.metrics)
            return output.metrics
    """
    run(tmp_path, own, script("dict(eval_strategy='epoch')", "Mine"), END)
    told = [seen(tmp_path, rank) for rank in range(4)]
    assert all(one["eval_loss"] == told[0]["eval_loss"] for one in told)


def test_adapters(tmp_path):
    pytest.importorskip("peft")
    lora = """
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"],
                                             task_type="SEQ_CLS"))
    trainer = Trainer(model=model, args=TrainingArguments(**{**args, "save_strategy": "epoch"}),
                      train_dataset=Data(32, 0), eval_dataset=Data(20, 1), callbacks=[Watch()])
    trainer.train()
    import lofi
    note("average bytes", lofi.stats()["cross_bytes"]["average"])
    trainer.save_model("final")
    """
    run(tmp_path, script(), lora)
    final = saved(tmp_path / "final" / "adapter_model.safetensors")
    average = mean(tmp_path)
    by_name = {name.replace(".default", ""): value for name, value in average.items()}
    named = {n: by_name.get(n, by_name.get(n.replace("classifier", "classifier.modules_to_save")))
             for n in final}  # fmt: skip
    assert all(torch.equal(value, named[name]) for name, value in final.items())
    folder = tmp_path / "out" / "checkpoint-8"
    assert same(saved(folder / "adapter_model.lofi.safetensors"), final)
    whole = sum(tensor.nbytes for tensor in average.values())
    assert seen(tmp_path)["average bytes"][0] < whole / 4  # frozen weights are not sent


def test_node_evaluation_warns_with_the_best_model(tmp_path):
    more = """dict(eval_strategy='epoch', save_strategy='epoch', load_best_model_at_end=True)"""
    ended = run(tmp_path, script(more), "trainer.train()", LOFI_EVAL="node")
    assert "nodes may choose different" in ended[0].stderr


GENERATE = """
    import json
    from transformers import GPT2Config, GPT2LMHeadModel
    seen = {}
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    net = GPT2LMHeadModel(config)
    model = DDP(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def steps():
        model.train()
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * dist.get_rank() + step)
            ids = torch.randint(0, 20, (2, 8), generator=generator)
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    def save(name):
        with open(f"{name}{dist.get_rank()}.test", "wb") as file:
            file.write(dump(net.state_dict()))

    steps()
    save("own")
    if WITH:
        net.eval()
        net.generate(torch.tensor([[1, 2]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        save("seen")
    steps()
    save("last")
"""


def test_generate_uses_the_average_and_harms_nothing(tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, f"WITH = {name == 'with'}", GENERATE)
    average = mean(tmp_path / "with", "own")
    assert all(same(load(tmp_path / "with" / f"seen{rank}.test"), average) for rank in range(4))
    for rank in range(4):
        lasts = [load(tmp_path / name / f"last{rank}.test") for name in ("with", "without")]
        assert equal(*lasts)


ACCELERATE = """
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    data = [(torch.randn(4), torch.tensor(i % 2)) for i in range(64)]
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for epoch in range(3):
        net.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    note_own(accelerator.unwrap_model(net))
    if accelerator.is_main_process:
        torch.save(accelerator.get_state_dict(net), "model.pth")
    import json, lofi
    json.dump(lofi.stats()["cross_bytes"], open(f"bytes{dist.get_rank()}.json", "w"))
"""


@pytest.mark.quick
def test_accelerates_own_loop(tmp_path):
    """It broadcasts the generator's state each epoch: inside the node."""
    ended = run(tmp_path, ACCELERATE)
    assert json.loads((tmp_path / "bytes0.json").read_text())["training"] == 0
    assert same(load(tmp_path / "model.lofi.pth"), mean(tmp_path, "own"))
    assert "crosses nodes while they train apart" not in ended[0].stderr


STREAMED = """
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            data = Data(64, 0)
            return (data[i] for i in range(64))
    trainer.train_dataset = Stream()
    trainer.train()
    trainer.save_model("final")
    import lofi
    note("training bytes", lofi.stats()["cross_bytes"]["training"])
"""


def test_a_streamed_dataset(tmp_path):
    """Rank 0 reads the batches for all: that crosses, stays right, and is said once."""
    more = "dict(max_steps=4, accelerator_config={'dispatch_batches': %s})"
    for name, dispatch in (("rank 0 reads", True), ("each reads", False)):
        folder = tmp_path / name
        folder.mkdir()
        ended = run(folder, script(more % dispatch), STREAMED)
        assert same(saved(folder / "final" / "model.safetensors"), mean(folder))
        assert ended[0].stderr.count("crosses nodes while they train apart") == int(dispatch)
        assert ("dispatch_batches" in ended[0].stderr) == dispatch
        crossed = sum(seen(folder, rank)["training bytes"][0] for rank in range(4))
        assert (crossed > 0) == dispatch
