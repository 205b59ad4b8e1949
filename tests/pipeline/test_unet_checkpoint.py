"""Checkpoints of the UNet: every form loads, everything else is refused with what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import SMALL, TABLE_KEY
from torch import Tensor, nn

from tilecov.pipeline.unet import UNet, load_unet

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")


@pytest.fixture
def trained() -> UNet:
    """A network that differs from any fresh one."""
    model = UNet(**SMALL).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8), torch.tensor([0, 9])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("given_model", [False, True])
def test_checkpoint_loads_bare_and_nested(
    tmp_path: Path, trained: UNet, batch: tuple[Tensor, Tensor], nested: bool, given_model: bool
) -> None:
    state = trained.state_dict()
    torch.save({"model_state_dict": state, "epoch": 7} if nested else state, tmp_path / "a.pt")
    model = UNet(**SMALL) if given_model else None
    loaded = load_unet(tmp_path / "a.pt", model)
    assert model is None or loaded is model
    assert not loaded.training
    assert torch.equal(loaded(*batch), trained(*batch))
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == [TABLE_KEY]


def test_loaded_network_trains_on_with_the_dropout_asked_for(tmp_path: Path, trained: UNet) -> None:
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    loaded = load_unet(str(tmp_path / "a.pt"), dropout=0.3).train()
    assert {m.p for m in loaded.modules() if isinstance(m, nn.Dropout)} == {0.3}
    loaded(torch.randn(1, 3, 8, 8), torch.tensor([3])).sum().backward()
    assert loaded.head.weight.grad is not None


def test_preset_checkpoint_tells_its_preset(tmp_path: Path) -> None:
    preset = UNet.preset(28)
    torch.save(preset.state_dict(), tmp_path / "mnist.pt")
    loaded = load_unet(tmp_path / "mnist.pt")
    assert loaded.state_dict().keys() == preset.state_dict().keys()
    assert loaded.in_channels == 1
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), preset.parameters(), strict=True))


def test_checkpoint_of_pytorch_ddpm_loads_by_key(tmp_path: Path, trained: UNet) -> None:
    content = {
        "net_model": UNet(**SMALL).state_dict(),
        "ema_model": trained.state_dict(),
        "step": 1,
        "x_T": torch.zeros(2),
    }
    torch.save(content, tmp_path / "ckpt.pt")
    loaded = load_unet(tmp_path / "ckpt.pt", key="ema_model")
    assert torch.equal(loaded.head.weight, trained.head.weight)
    with pytest.raises(ValueError, match=r"no state dict at its top.*net_model, ema_model, step, x_T.*key='ema_model'"):
        load_unet(tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"no key 'ema'; it has net_model, ema_model"):
        load_unet(tmp_path / "ckpt.pt", key="ema")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_checkpoint_of_a_wrapped_network_loads(tmp_path: Path, trained: UNet, wrap: Any) -> None:
    state = wrap(trained).state_dict()
    assert "head.weight" not in state
    torch.save(state, tmp_path / "a.pt")
    assert torch.equal(load_unet(tmp_path / "a.pt").head.weight, trained.head.weight)


@pytest.mark.parametrize("given_model", [False, True])
def test_half_precision_checkpoint_gives_a_single_precision_network(
    tmp_path: Path, trained: UNet, batch: tuple[Tensor, Tensor], given_model: bool
) -> None:
    torch.save({name: tensor.half() for name, tensor in trained.state_dict().items()}, tmp_path / "a.pt")
    loaded = load_unet(tmp_path / "a.pt", UNet(**SMALL) if given_model else None)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.isfinite(loaded(*batch)).all()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no UNet checkpoint at .*absent\.pt"):
        load_unet(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this"])
def test_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt cannot be read as a file of tensors"):
        load_unet(tmp_path / "a.pt")


def test_truncated_checkpoint(tmp_path: Path, trained: UNet) -> None:
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="it is damaged"):
        load_unet(tmp_path / "a.pt")


def test_pickled_objects_are_never_run(tmp_path: Path, trained: UNet) -> None:
    torch.save(trained, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"never unpickled\. Write it with torch\.save\(model\.state_dict\(\), path\)"):
        load_unet(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], torch.zeros(2), {}, {"a": 1}, {"model_state_dict": {"a": "b"}}, {"step": torch.tensor(1)}],
)
def test_file_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="state dict"):
        load_unet(tmp_path / "a.pt")


def spoil(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["upblocks.0.block1.2.bias"], state["tail.0.weight"]
    elif how == "unexpected":
        state["tail.3.weight"] = torch.zeros(1)
    else:
        state["middleblocks.0.attn.proj.bias"] = torch.zeros(7)
    return state


@pytest.mark.parametrize("given_model", [False, True])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"2 missing keys: upblocks\.0\.block1\.2\.bias, tail\.0\.weight\."),
        ("unexpected", r"1 unexpected keys: tail\.3\.weight\."),
        ("reshaped", r"1 other shapes: middleblocks\.0\.attn\.proj\.bias \(7,\) instead of \(64,\)\."),
    ],
)
def test_keys_that_do_not_fit_are_listed(
    tmp_path: Path, trained: UNet, how: str, message: str, given_model: bool
) -> None:
    torch.save(spoil(trained.state_dict(), how), tmp_path / "a.pt")
    model = UNet(**SMALL) if given_model else None
    with pytest.raises(ValueError, match=rf"a\.pt does not fit this UNet\. {message}"):
        load_unet(tmp_path / "a.pt", model)


def test_checkpoint_of_another_network_leaves_the_given_one_as_it_was(tmp_path: Path, trained: UNet) -> None:
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model = UNet(**SMALL | {"attn": []})
    before = model.head.weight.clone()
    with pytest.raises(ValueError, match=r"30 unexpected keys: .* and 22 more"):
        load_unet(tmp_path / "a.pt", model)
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    "state",
    [
        {"conv.weight": torch.zeros(3)},
        {TABLE_KEY: torch.zeros(4, 4, 4)},
        {TABLE_KEY: torch.zeros(4, 0), "downblocks.0.block2.3.bias": torch.zeros(4)},
        {TABLE_KEY: torch.zeros(4, 32)},
        {TABLE_KEY: torch.zeros(4, 32), "downblocks.x.weight": torch.zeros(4)},
    ],
)
def test_state_dict_of_something_else(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"does not tell which UNet it is for.*model=UNet"):
        load_unet(tmp_path / "a.pt")
