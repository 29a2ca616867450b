"""Models by name, and their checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from captum_learnprop.errors import LearnpropError
from captum_learnprop.models import digits_cnn, reference_net, torchvision_model

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Parameters of a small model with 7 classes."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    return squeezenet1_1(num_classes=7).state_dict()


class TestTorchvision:
    def test_random_weights(self) -> None:
        model = torchvision_model(NAME)
        assert not model.training
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)

    def test_seeded(self) -> None:
        torch.manual_seed(3)
        first = torchvision_model(NAME).state_dict()
        torch.manual_seed(3)
        second = torchvision_model(NAME).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
    def test_auxiliary_classifiers_are_left_out_silently(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = torchvision_model(name)
        assert not any(key.startswith(("aux", "Aux")) for key in model.state_dict())
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)

    def test_unknown_name(self) -> None:
        with pytest.raises(LearnpropError, match="no classification model 'resnet_18'; did you mean 'resnet18'"):
            torchvision_model("resnet_18")
        with pytest.raises(LearnpropError, match="no classification model 'fcn_resnet50'"):
            torchvision_model("fcn_resnet50")
        with pytest.raises(LearnpropError, match="torchvision:resnet18"):
            torchvision_model(None)

    def test_unknown_weights(self) -> None:
        with pytest.raises(LearnpropError, match="no weights 'BEST'; torchvision publishes: IMAGENET1K_V1"):
            torchvision_model(NAME, weights="BEST")
        with pytest.raises(LearnpropError, match="exclude each other"):
            torchvision_model(NAME, weights="DEFAULT", checkpoint="x.pt")

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
    def test_checkpoint(self, tmp_path: Path, state: dict[str, torch.Tensor], suffix: str) -> None:
        path = tmp_path / f"model{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        model = torchvision_model(NAME, checkpoint=path)
        assert not model.training
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_nested_and_parallel_checkpoint(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
        nested = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
        torch.save(nested, tmp_path / "model.pt")
        model = torchvision_model(NAME, checkpoint=tmp_path / "model.pt")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_checkpoint_that_does_not_fit(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
        path = tmp_path / "model.pt"
        other = {key: value for key, value in state.items() if key != "features.0.bias"}
        other |= {"extra": torch.zeros(1), "features.0.weight": torch.zeros(2, 2)}
        torch.save(other, path)
        faults = r"missing: features.0.bias; unexpected: extra; wrong shape: features.0.weight \(2, 2\) for \(64"
        with pytest.raises(LearnpropError, match=f"does not fit squeezenet1_1: {faults}"):
            torchvision_model(NAME, checkpoint=path)

    def test_unusable_files(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="there is no checkpoint"):
            torchvision_model(NAME, checkpoint=tmp_path / "no.pt")
        for suffix in (".pt", ".safetensors"):
            path = tmp_path / f"cut{suffix}"
            path.write_bytes(b"\x10\x20")
            with pytest.raises(LearnpropError, match="cannot be read"):
                torchvision_model(NAME, checkpoint=path)
        (tmp_path / "model.onnx").touch()
        with pytest.raises(LearnpropError, match=r"must be a .safetensors, .pt or .pth file"):
            torchvision_model(NAME, checkpoint=tmp_path / "model.onnx")
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(LearnpropError, match="does not hold a state dict"):
            torchvision_model(NAME, checkpoint=tmp_path / "list.pt")


class TestLoadModel:
    def test_by_record_and_argument(self) -> None:
        from captum_learnprop.models import load_model

        assert type(load_model(f"torchvision:{NAME}")).__name__ == "SqueezeNet"

    def test_unknown_record(self) -> None:
        from captum_learnprop.models import load_model

        with pytest.raises(LearnpropError, match="unknown model 'torchvison'; did you mean 'torchvision'"):
            load_model("torchvison:resnet18")


class TestDigits:
    def test_shipped_model(self) -> None:
        model = digits_cnn()
        assert not model.training
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)

    def test_arguments_mean_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="leave out 'small'"):
            digits_cnn("small")
        with pytest.raises(LearnpropError, match="leave out 'DEFAULT'"):
            digits_cnn(None, "DEFAULT")
        with pytest.raises(LearnpropError, match=r"digits_cnn: no weights file .*no\.safetensors"):
            digits_cnn(checkpoint=tmp_path / "no.safetensors")


class TestReference:
    def test_by_architecture_and_task(self) -> None:
        model = reference_net("resnet-parts")
        assert type(model).__name__ == "ResNetLike"
        assert not model.training
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)

    def test_checkpoint(self) -> None:
        from captum_learnprop.scenes.reference_nets import weights_file

        model = reference_net("vgg-patch", checkpoint=weights_file("vgg", "patch"))
        assert type(model).__name__ == "VggLike"
        with pytest.raises(LearnpropError, match=r"reference net vgg-parts: .* but vgg-patch"):
            reference_net("vgg-parts", checkpoint=weights_file("vgg", "patch"))

    def test_unusable_requests(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="reference:resnet-digits"):
            reference_net()
        with pytest.raises(LearnpropError, match="no reference net 'resnet-digit'; did you mean 'resnet-digits'"):
            reference_net("resnet-digit")
        with pytest.raises(LearnpropError, match="no reference net 'x'; choose vgg-digits, "):
            reference_net("x")
        with pytest.raises(LearnpropError, match="leave out 'DEFAULT'"):
            reference_net("vgg-digits", "DEFAULT")
        with pytest.raises(LearnpropError, match=r"reference net vgg-digits: no weights file .*no\.safetensors"):
            reference_net("vgg-digits", checkpoint=tmp_path / "no.safetensors")
