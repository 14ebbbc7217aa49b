"""Files of weights: read as data in every form that people keep them in, refused in one clear line otherwise."""

import io
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layergraft.errors import UserError
from layergraft.hosts.weight_files import read, require_match

LAYER = {"conv1.weight": torch.arange(36.0).view(4, 1, 3, 3)}


@pytest.mark.parametrize("nesting", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix, stripped", [("", ()), ("module.", ("module.",)), ("model.", ("model.",)), ("net.", ("net.",)), ("model.module.", ("model.", "module."))])  # fmt: skip
def test_forms_of_a_pt_file(nesting, prefix, stripped, tmp_path):
    state = {f"{prefix}{name}": tensor for name, tensor in LAYER.items()}
    torch.save({nesting: state, "epoch": 3} if nesting else state, tmp_path / "a.pt")
    file = read(str(tmp_path / "a.pt"))
    assert list(file.tensors) == ["conv1.weight"] and torch.equal(file.tensors["conv1.weight"], LAYER["conv1.weight"])
    assert set(file.stripped) == set(stripped)


def test_safetensors(tmp_path):
    save_file(LAYER, tmp_path / "a.safetensors")
    assert list(read(str(tmp_path / "a.safetensors")).under("conv1")) == ["weight"]


def test_a_lightning_checkpoint(tmp_path):
    import warnings

    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.net = nn.Conv2d(1, 4, 3)

        def training_step(self, batch, _):
            return self.net(batch).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(2, 1, 8, 8), batch_size=2))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    file = read(str(tmp_path / "last.ckpt"))
    assert torch.equal(file.tensors["weight"], module.net.weight) and file.stripped == ("net.",)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(self.where),)


def test_a_pickle_that_wants_to_run_code_does_not_run(tmp_path):
    bomb = Bomb()
    bomb.where = tmp_path / "boom"
    torch.save({"conv1.weight": torch.zeros(1), "x": bomb}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="is refused: reading it would run code .*mkdir"):
        read(str(tmp_path / "a.pt"))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="is refused|is no checkpoint") as refused:
        read(str(tmp_path / "b.pkl"))
    assert "weights_only" not in str(refused.value)  # torch's advice is to load it in the unsafe way
    assert not bomb.where.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "a.pt")
    with pytest.raises(UserError, match="would run code .*; save the state dict alone"):
        read(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file(suffix, tmp_path):
    if suffix == "pt":
        whole = io.BytesIO()
        torch.save(LAYER, whole)
        data = whole.getvalue()
    else:
        save_file(LAYER, tmp_path / "whole.safetensors")
        data = (tmp_path / "whole.safetensors").read_bytes()
    for number, length in enumerate([len(data) - 30, len(data) // 2, 20, 3]):
        path = tmp_path / f"cut{number}.{suffix}"
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="cut short|not a whole safetensors file"):
            read(str(path))


def test_damage_anywhere_is_a_clear_error_or_harmless(tmp_path):
    """Old-format files, one byte changed: torch raises nearly anything."""
    path = tmp_path / "a.pt"
    torch.save(LAYER, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    failed = 0
    for number in range(150):
        data = bytearray(whole)
        data[int(torch.randint(0, len(data), (), generator=generator))] ^= int(
            torch.randint(1, 256, (), generator=generator)
        )
        damaged = tmp_path / f"{number}.pt"
        damaged.write_bytes(data)
        try:
            read(str(damaged))
        except UserError as error:
            failed += 1
            assert "\n" not in str(error)
    assert failed > 20


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello there, this is no checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save({"a.weight": torch.zeros(1), "module.a.weight": torch.ones(1)}, tmp_path / "twice.pt")
    save_file({}, tmp_path / "none.safetensors")
    for name, message in {
        "empty.pt": "is empty",
        "text.pt": "is no checkpoint",
        "list.pt": "holds a list, not a state dict",
        "numbers.pt": "holds no tensors; its keys: epoch",
        "twice.pt": "has 'a.weight' twice once module. is taken off",
        "none.safetensors": "holds no tensors",
        "": "is a folder; a file of weights is needed",
        "missing.pt": r"there is no file .*missing.pt; beside it: .*empty.pt",
    }.items():
        with pytest.raises(UserError, match=message):
            read(str(tmp_path / name))


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    for value in (1.0, 2.0):
        save_file({"weight": torch.full((2,), value)}, tmp_path / "a.safetensors")
        os.utime(tmp_path / "a.safetensors", ns=(int(value), int(value)))
        assert read(str(tmp_path / "a.safetensors")).tensors["weight"].tolist() == [value, value]


def test_types_follow_the_module():
    ready = require_match("here", {"weight": torch.ones(2, dtype=torch.float16)}, {"weight": torch.zeros(2)})
    assert ready["weight"].dtype == torch.float32
