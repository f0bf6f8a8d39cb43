"""Encoders by name."""

import pytest
import torch

from bonlib.training.encoders import load_encoder, make_encoder, save_encoder


@pytest.mark.parametrize(("name", "channels"), [("small", 1), ("small", 3), ("resnet18", 3), ("mobilenet_v3_small", 3)])
def test_unit_embeddings_of_the_width_asked_for(name, channels):
    embeddings = make_encoder(name, dim=24, in_channels=channels)(torch.rand(3, channels, 32, 32))
    assert embeddings.shape == (3, 24)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second, other = (make_encoder(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize(
    ("name", "channels", "message"), [("resnet19", 3, "name is 'resnet19'"), ("resnet18", 1, "takes 3")]
)
def test_what_cannot_be_had_is_refused(name, channels, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(name, in_channels=channels)


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_frozen_batch_norms_keep_their_statistics_scales_and_mode():
    torch.manual_seed(0)
    free, frozen = (make_encoder("resnet18", dim=8, in_channels=3, freeze_batch_norm=f) for f in (False, True))
    images = torch.rand(4, 3, 64, 64)
    before = [(layer.running_mean.clone(), layer.weight.clone()) for layer in norms(frozen)]
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
    frozen.train()(images).square().sum(dim=1).add(frozen(images)[:, 0]).sum().backward()
    optimizer.step()
    free.train()(images)
    assert not any(layer.training for layer in norms(frozen))
    assert all(layer.training for layer in norms(free))
    for layer, (mean, weight) in zip(norms(frozen), before, strict=True):
        assert torch.equal(layer.running_mean, mean)
        assert torch.equal(layer.weight, weight)
    assert not torch.equal(norms(free)[0].running_mean, torch.zeros(64))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in frozen.parameters())


def test_weights_are_torchvisions(monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    donor = resnet18().state_dict()
    monkeypatch.setattr(
        ResNet18_Weights, "get_state_dict", lambda self, *args, **kwargs: donor
    )  # instead of a download
    encoder = make_encoder("resnet18", dim=8, in_channels=3, weights="IMAGENET1K_V1")
    state = encoder[0].state_dict()
    assert all(torch.equal(state[name], donor[name]) for name in donor if not name.startswith("fc."))
    assert state["fc.weight"].shape == (8, 512)
    with pytest.raises(ValueError, match="weights is 'V9'; resnet18 has IMAGENET1K_V1, 'DEFAULT' or None"):
        make_encoder("resnet18", in_channels=3, weights="V9")
    with pytest.raises(ValueError, match="'small' has neither"):
        make_encoder("small", weights="DEFAULT")


def test_weights_that_make_another_network_are_refused_before_training(monkeypatch):
    from torchvision.models import GoogLeNet_Weights, googlenet

    donor = googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(GoogLeNet_Weights, "get_state_dict", lambda self, *args, **kwargs: donor)
    with pytest.raises(ValueError, match="'DEFAULT', with which torchvision makes another googlenet than without"):
        make_encoder("googlenet", in_channels=3, weights="DEFAULT")


MADE = {"name": "small", "dim": 12, "in_channels": 3}


def test_a_saved_encoder_comes_back_with_its_images_options(tmp_path):
    encoder = make_encoder(**MADE, seed=3)
    encoder(torch.rand(8, 3, 32, 32))  # batch norm statistics of its own
    file = save_encoder(tmp_path / "a" / "encoder.pt", encoder, images={"size": 32}, **MADE)
    again, images = load_encoder(file)
    assert images == {"size": 32}
    assert not again.training
    x = torch.rand(5, 3, 32, 32)
    assert torch.equal(again(x), encoder.eval()(x))
    frozen = make_encoder("resnet18", dim=4, in_channels=3, freeze_batch_norm=True)
    made = {"name": "resnet18", "dim": 4, "in_channels": 3, "freeze_batch_norm": True}
    again, _ = load_encoder(save_encoder(tmp_path / "b.pt", frozen, **made))
    assert torch.equal(again(x), frozen.eval()(x))


def test_wrong_settings_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="which does not make this encoder: size mismatch"):
        save_encoder(tmp_path / "encoder.pt", make_encoder(**MADE), **MADE | {"dim": 13})
    with pytest.raises(ValueError, match="does not make this encoder"):
        save_encoder(tmp_path / "encoder.pt", make_encoder(**MADE), width=3)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    file = save_encoder(tmp_path / "encoder.pt", make_encoder(**MADE), **MADE)
    (tmp_path / "half.pt").write_bytes(file.read_bytes()[:5000])
    torch.save({"state": 1}, tmp_path / "foreign.pt")
    for name in ("half.pt", "foreign.pt"):
        with pytest.raises(ValueError, match=f"{name} (cannot be read|has the format)"):
            load_encoder(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_encoder(tmp_path / "none.pt")


def test_relu_after_pooling_is_the_function_of_relu_before():
    encoder = make_encoder(dim=8, seed=3).train()
    layers = list(encoder)
    for i, layer in enumerate(list(encoder)):
        if isinstance(layer, torch.nn.MaxPool2d):
            layers[i : i + 2] = layers[i + 1], layer
    usual, images = torch.nn.Sequential(*layers), torch.rand(6, 1, 32, 32)
    outputs, gradients = [], []
    for net in (encoder, usual):
        encoder.zero_grad()
        embeddings = net(images)
        (embeddings[:, 0] * torch.arange(6)).sum().backward()
        outputs.append(embeddings.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()]))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
