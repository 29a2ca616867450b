"""RuleSet: building, keeping, refusing, and use by name from zennit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch
from rule_nets import GATE_NAMES, NETS, images, one_hot, prepare, randomise, resnet, twin, vgg
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from zennit.attribution import Gradient, SmoothGrad
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import COMPOSITES
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

import zennit_rules as zr
from zennit_rules import ruleset

KEY = "captum-learnprop"


@pytest.fixture
def names() -> Iterator[None]:
    """Composite names registered in a test are taken out again."""
    before = dict(COMPOSITES)
    yield
    COMPOSITES.clear()
    COMPOSITES.update(before)


def trained(model: nn.Module, x: Tensor, **options: Any) -> zr.RuleSet:
    """A rule set off its start."""
    rules = zr.RuleSet.build(model, x, **options)
    randomise(rules.parameters())
    return rules


def attribution(model: nn.Module, x: Tensor, rules: zr.RuleSet | None) -> Tensor:
    """Gradient of the second score."""
    if rules is None:
        return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]
    with rules.applied(model):
        return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]


class TestBuild:
    @pytest.mark.parametrize("gate", GATE_NAMES)
    @pytest.mark.parametrize("net", NETS)
    def test_parameters(self, net: str, gate: str) -> None:
        model, x = NETS[net](), images()
        state = model.state_dict().keys()
        rules = zr.RuleSet.build(model, x, gate=gate, pooling="soft")
        assert model.state_dict().keys() == state
        assert not {id(p) for p in rules.parameters()} & {id(p) for p in model.parameters()}
        assert all(p.requires_grad and p.dtype == torch.float64 for p in rules.parameters())
        assert [n.split("::")[0] for n, _ in rules.named_parameters() if n.endswith("::raw")] == [
            s.name for s in rules.sites if s.kind == "activation"
        ]
        assert torch.equal(attribution(model, x, rules), attribution(model, x, None))

    def test_the_caller_keeps_its_input(self) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        before = x.clone()
        with torch.no_grad():
            zr.RuleSet.build(resnet(), x)
        assert torch.equal(x, before)
        assert not x.requires_grad

    def test_several_arguments(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.relu = nn.ReLU()

            def forward(self, x: Tensor, index: Tensor, scale: float) -> Tensor:
                return self.relu(x)[:, index] * scale

        rules = zr.RuleSet.build(Two(), (torch.randn(2, 3), torch.tensor([0, 1]), 2.0))
        assert [s.name for s in rules.sites] == ["relu"]

    def test_unknown_names(self) -> None:
        for options, message in [
            ({"gate": "chanel"}, "unknown gate 'chanel'"),
            ({"start": "gradients"}, "unknown start 'gradients'"),
            ({"pooling": "sof"}, "unknown pooling 'sof'"),
            ({"composite": "learned_gradiant"}, "'learned_gradiant' is unknown; trainable ones: .*learned_gradient"),
            ({"composite": "epsilon_plus"}, "'epsilon_plus' has no trainable rules"),
            ({"gate": "quadrant", "gate_options": {"per": "pixel"}}, "per='pixel'"),
        ]:
            with pytest.raises(zr.RuleError, match=message):
                zr.RuleSet.build(vgg(), images(), **options)

    def test_state_dict(self) -> None:
        model, x = vgg(), images()
        rules, other = trained(model, x), zr.RuleSet.build(model, x)
        other.load_state_dict(rules.state_dict())
        assert torch.equal(attribution(model, x, rules), attribution(model, x, other))
        with pytest.raises(zr.RuleError, match="do not fit this rule set; differing: 2::raw"):
            other.load_state_dict({k: v for k, v in rules.state_dict().items() if not k.startswith("2:")})
        with pytest.raises(zr.RuleError, match=r"2::raw has shape \(1, 9\)"):
            other.load_state_dict({**rules.state_dict(), "2::raw": torch.zeros(1, 9)})
        assert "sites=3" in repr(rules)
        with pytest.raises(zr.RuleError, match="no site 'nope'; there are: 2, 5, 9"):
            rules.gate("nope")


class TestApplied:
    """Every gradient-based method runs by the rules."""

    @pytest.mark.parametrize("method", ["Saliency", "InputXGradient", "IntegratedGradients", "GradientShap"])
    def test_captum(self, method: str) -> None:
        model, x = resnet(), images()
        rules = trained(model, x)
        options: dict[str, Any] = {"target": 1}
        options |= {"n_steps": 3} if method == "IntegratedGradients" else {}
        options |= {"baselines": torch.zeros_like(x)} if method == "GradientShap" else {}
        attribute = getattr(captum.attr, method)(model).attribute
        plain = attribute(x, **options)
        with rules.applied(model):
            ours = attribute(x, **options)
        assert not torch.allclose(ours, plain)
        if method == "InputXGradient":
            torch.testing.assert_close(ours, x * attribution(model, x, rules), rtol=1e-12, atol=1e-14)

    def test_captum_layers_and_noise(self) -> None:
        model, x = resnet(), images()
        rules = trained(model, x)
        with rules.applied(model):
            cam = captum.attr.LayerGradCam(model, model.layers[0].conv1).attribute(x, target=1)
            noisy = captum.attr.NoiseTunnel(captum.attr.Saliency(model)).attribute(x, target=1, nt_samples=2)
        plain = captum.attr.LayerGradCam(model, model.layers[0].conv1).attribute(x, target=1)
        assert not torch.allclose(cam, plain)
        assert torch.isfinite(noisy).all()

    def test_zennit_attributors(self) -> None:
        model, x = resnet(), images()
        rules = trained(model, x)
        seed = one_hot(torch.zeros(2, 5, dtype=torch.float64))
        with Gradient(model, rules.composite()) as attributor:
            _, ours = attributor(x.detach(), seed)
        assert torch.equal(ours, attribution(model, x, rules))
        with SmoothGrad(model, composite=rules.composite(), noise_level=0.0, n_iter=2) as attributor:
            _, smooth = attributor(x.detach(), seed)
        torch.testing.assert_close(smooth, ours, rtol=1e-10, atol=1e-14)

    def test_another_batch_size_and_image_size(self) -> None:
        model, x = vgg()[:7], images()  # without the head, which knows its size
        rules = trained(model, x)
        assert torch.isfinite(attribution(model, images(5, 12), rules)).all()


class TestRefusals:
    def test_another_model(self) -> None:
        rules = trained(vgg(), images())
        for model in (resnet(), vgg()[:7], prepare(nn.Sequential(*vgg()[:9], nn.Tanh(), nn.Linear(8, 5)))):
            with pytest.raises(zr.RuleError, match="belongs to another model"), rules.applied(model):
                pass
            with pytest.raises(zr.RuleError, match="belongs to another model"), rules.composite().context(model):
                pass

    def test_other_shapes(self) -> None:
        narrow, wide = vgg(), vgg()
        wide[0], wide[1] = nn.Conv2d(3, 4, 5, padding=2).double(), wide[1]
        with pytest.raises(zr.RuleError, match="belongs to another model"), trained(narrow, images()).applied(wide):
            pass

    def test_a_site_that_was_not_there(self) -> None:
        class Changing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.relu, self.more = nn.ReLU(), False

            def forward(self, x: Tensor) -> Tensor:
                x = self.relu(x)
                return torch.sigmoid(self.relu(x - 0.5)) if self.more else x

        model, x = Changing(), torch.randn(2, 3, requires_grad=True)
        rules = zr.RuleSet.build(model, x)
        model.more = True
        with rules.applied(model), pytest.raises(zr.RuleError, match=r"called ReLU at site 'relu#1'.*of 1 sites"):
            model(x)

    @pytest.mark.parametrize("gate", GATE_NAMES)
    def test_rules_of_other_samples(self, gate: str) -> None:
        model = resnet()
        rules = zr.RuleSet.build(model, images(2), gate=gate, per_sample=True)
        attribution(model, images(2), rules)
        with rules.applied(model), pytest.raises(zr.RuleError, match="'relu' holds parameters for each of 2 samples"):
            model(images(3))

    def test_another_image_size_for_a_gate_per_element(self) -> None:
        model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        rules = zr.RuleSet.build(model, images(2, 8), gate="element")
        with rules.applied(model), pytest.raises(zr.RuleError, match=r"built for shape \(2, 4, 6, 6\).*got \(2, 4, 8"):
            model(images(2, 10))


class TestForSamples:
    @pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
    def test_starts_from_the_shared_rules(self, gate: str) -> None:
        model, x = resnet(), images(3)
        rules = trained(model, x, gate=gate, pooling="soft")
        own = rules.for_samples(3)
        torch.testing.assert_close(attribution(model, x, own), attribution(model, x, rules), rtol=1e-12, atol=1e-15)
        assert not {id(p) for p in own.parameters()} & {id(p) for p in rules.parameters()}
        before = attribution(model, x, own)
        for site in own.sites:
            gate_ = own.gate(site.name)
            for parameter in gate_.parameters():
                parameter.data.select(gate_.sample_dim, 1).add_(0.5)
        moved = (attribution(model, x, own) != before).flatten(1).any(1)
        assert moved.tolist() == [False, True, False]

    def test_from_one_sample_to_many(self) -> None:
        model = resnet()
        own = trained(model, images(1), gate="element").for_samples(4)
        assert torch.isfinite(attribution(model, images(4), own)).all()

    def test_from_other_samples(self) -> None:
        with pytest.raises(zr.RuleError, match="for each of 2 samples, not 3"):
            trained(resnet(), images(2), gate="element").for_samples(3)

    @pytest.mark.parametrize("gate", ["channel", "quadrant"])
    def test_can_be_kept(self, gate: str, tmp_path: Path) -> None:
        model, x = resnet(), images(3)
        own = trained(model, images(1), gate=gate, pooling="soft").for_samples(3)
        loaded = zr.RuleSet.load(own.save(tmp_path / "own.safetensors", model), model)
        assert torch.equal(attribution(model, x, loaded), attribution(model, x, own))


class TestKeeping:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("gate", GATE_NAMES)
    def test_round_trip(self, gate: str, dtype: torch.dtype, tmp_path: Path) -> None:
        model = resnet().to(dtype)
        x = images().detach().to(dtype).requires_grad_()
        rules = trained(model, x, gate=gate, start="guided_backprop", pooling="soft")
        rules.training = {"steps": 3, "loss": 0.5}
        path = rules.save(tmp_path / "rules.safetensors", model)
        loaded = zr.RuleSet.load(path, model)
        state, again = rules.state_dict(), loaded.state_dict()
        assert list(state) == list(again)
        assert all(torch.equal(state[k], again[k]) and state[k].dtype == again[k].dtype for k in state)
        assert (loaded.sites, loaded.config, loaded.training) == (rules.sites, rules.config, rules.training)
        assert (loaded.architecture, loaded.weights, loaded.closed) == (rules.architecture, rules.weights, True)
        assert torch.equal(attribution(model, x, loaded), attribution(model, x, rules))
        assert [r.name for r in loaded.coverage().rows][:5] == [r.name for r in rules.coverage().rows][:5]

    def test_options_and_composite_come_back(self, tmp_path: Path) -> None:
        model, x = vgg(), images()
        rules = trained(model, x, composite="learned_guided_backprop", gate="quadrant", gate_options={"per": "layer"})
        loaded = zr.RuleSet.load(rules.save(tmp_path / "r.safetensors"))
        assert loaded.composite_name == "learned_guided_backprop"
        assert isinstance(loaded.composite(), zr.LearnedGuidedBackprop)
        assert torch.equal(attribution(model, x, loaded), attribution(model, x, rules))

    def test_metadata(self, tmp_path: Path) -> None:
        model = vgg()
        path = trained(model, images()).save(tmp_path / "r.safetensors", model)
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()[KEY])
        assert document["format_version"] == ruleset.FORMAT_VERSION
        assert document["composite"] == "learned_gradient"
        assert document["config"]["gate"] == "channel"
        assert [s["name"] for s in document["sites"]] == ["2", "5", "9"]
        assert document["sites"][0]["shape"] == [2, 4, 8, 8]
        assert document["architecture"]
        assert document["weights"]

    def test_moved_into_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rules, path = trained(vgg(), images()), tmp_path / "r.safetensors"
        rules.save(path)
        kept = path.read_bytes()
        randomise(rules.parameters())
        seen, write = [], Path.write_bytes

        def failing(target: Path, *args: Any) -> None:
            write(Path(target), b"half")
            seen.append(target)
            raise KeyboardInterrupt

        for owner, name in ((Path, "write_bytes"), (os, "replace")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, failing)
                with pytest.raises(KeyboardInterrupt):
                    rules.save(path)
        assert Path(seen[0]).parent == tmp_path
        assert Path(seen[0]) != path
        assert path.read_bytes() == kept
        assert os.listdir(tmp_path) == ["r.safetensors"]
        rules.save(path)
        assert path.read_bytes() != kept
        assert os.listdir(tmp_path) == ["r.safetensors"]

    def test_permissions_are_those_of_a_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        path = trained(vgg(), images()).save(tmp_path / "r.safetensors")
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_what_cannot_be_kept(self, tmp_path: Path) -> None:
        with pytest.raises(zr.RuleError, match="open rule set"):
            zr.LearnedGradient().rules.save(tmp_path / "r.safetensors")
        with pytest.raises(zr.RuleError, match=r"folder .* does not exist"):
            trained(vgg(), images()).save(tmp_path / "nowhere" / "r.safetensors")
        with pytest.raises(zr.RuleError, match="belongs to another model"):
            trained(vgg(), images()).save(tmp_path / "r.safetensors", resnet())

        class Unnamed(zr.ChannelGate):
            name = ""

        with pytest.raises(zr.RuleError, match="has no name; register it"):
            trained(vgg(), images(), gate=Unnamed).save(tmp_path / "r.safetensors")
        assert not os.listdir(tmp_path)


class TestLoadRefuses:
    def rewrite(self, path: Path, **changes: Any) -> Path:
        """The file with another document."""
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()[KEY])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
        del document["sha256"]  # as in files from before there was one, whose documents are checked by themselves
        document |= changes
        for key, value in changes.items():
            if value is None:
                del document[key]
        save_file(tensors, path, metadata={KEY: json.dumps(document)})
        return path

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A rule set of a VGG."""
        model = vgg()
        return trained(model, images()).save(tmp_path / "r.safetensors", model)

    @pytest.mark.parametrize("given", [{}, None, 3])
    def test_no_path(self, given: Any) -> None:
        with pytest.raises(zr.RuleError, match=f"a RuleSet or the path of one, got {type(given).__name__}"):
            zr.RuleSet.load(given)

    def test_another_architecture(self, path: Path) -> None:
        with pytest.raises(zr.RuleError, match="belongs to another model"):
            zr.RuleSet.load(path, resnet())

    def test_other_weights(self, path: Path) -> None:
        other = vgg()
        with pytest.raises(zr.RuleError, match=r"saved for a Sequential with other weights.*check_weights=False"):
            zr.RuleSet.load(path, other)
        zr.RuleSet.load(path, other, check_weights=False)
        zr.RuleSet.load(path)

    def test_a_buffer_that_moved(self, tmp_path: Path) -> None:
        model = vgg()
        path = trained(model, images()).save(tmp_path / "r.safetensors", model)
        zr.RuleSet.load(path, model)
        model[1].running_mean += 1
        with pytest.raises(zr.RuleError, match="other weights"):
            zr.RuleSet.load(path, model)

    def test_precision_is_no_other_model(self, path: Path, tmp_path: Path) -> None:
        model = vgg()
        path = trained(model, images()).save(tmp_path / "r2.safetensors", model)
        assert next(iter(zr.RuleSet.load(path, model.float()).parameters())).dtype == torch.float32

    def test_newer_format(self, path: Path) -> None:
        with pytest.raises(zr.RuleError, match=r"has format 99, newer than this version reads .*upgrade"):
            zr.RuleSet.load(self.rewrite(path, format_version=99))

    @pytest.mark.parametrize("keep", [0, 5, 40, -1])
    def test_truncated(self, path: Path, keep: int) -> None:
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(zr.RuleError, match="truncated or no safetensors"):
            zr.RuleSet.load(path)

    def test_foreign(self, path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, path)
        with pytest.raises(zr.RuleError, match="not a rule set"):
            zr.RuleSet.load(path)
        path.write_text("not even that")
        with pytest.raises(zr.RuleError, match="truncated or no safetensors"):
            zr.RuleSet.load(path)

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing", tmp_path):
            with pytest.raises(zr.RuleError, match="no rule set at"):
                zr.RuleSet.load(path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"composite": "learned_nothing"}, "'learned_nothing' is unknown"),
            ({"composite": "epsilon_plus"}, "has no trainable rules"),
            ({"config": {"gate": "chanel", "start": "gradient", "pooling": "exact"}}, "unknown gate 'chanel'"),
            ({"config": {"gate": "channel", "start": "nowhere", "pooling": "exact"}}, "unknown start 'nowhere'"),
            ({"sites": []}, "do not fit this rule set"),
            ({"sites": None}, "damaged"),
            ({"config": None}, "damaged"),
            ({"config": {}}, "damaged"),
            ({"format_version": None}, "damaged"),
            ({"sites": [{"name": "2"}]}, "damaged"),
        ],
    )
    def test_unknown_or_missing_parts(self, path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(zr.RuleError, match=message):
            zr.RuleSet.load(self.rewrite(path, **changes))

    def test_no_json(self, path: Path) -> None:
        save_file({"a": torch.zeros(1)}, path, metadata={KEY: "{"})
        with pytest.raises(zr.RuleError, match="damaged"):
            zr.RuleSet.load(path)


@pytest.mark.usefixtures("names")
class TestRegisterTrained:
    @pytest.mark.parametrize("gate", ["channel", "feature"])
    def test_by_name_with_canonizers(self, gate: str, tmp_path: Path) -> None:
        model, x = vgg(), images()
        rules = trained(model, x, gate=gate, pooling="soft")
        zr.register_trained("my_rules", rules.save(tmp_path / "r.safetensors"))
        assert issubclass(COMPOSITES["my_rules"], zr.LearnedGradient)
        expected, weights = attribution(model, x, rules), [p.detach().clone() for p in model.parameters()]
        for canonizer in (None, SequentialMergeBatchNorm(), VGGCanonizer()):
            composite = COMPOSITES["my_rules"](canonizers=[canonizer] if canonizer else None)
            with Gradient(model, composite) as attributor:
                _, relevance = attributor(x.detach(), one_hot(torch.zeros(2, 5).double()))
            # zennit 0.5.1 merges the batch norm but leaves its eps: a factor of 1 - 5e-6 per layer
            torch.testing.assert_close(relevance, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
        # the canonizer divides and multiplies: its own rounding
        for a, b in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
        assert not any("forward" in m.__dict__ for m in model.modules())

    def test_survives_its_file(self, tmp_path: Path) -> None:
        path = trained(vgg(), images()).save(tmp_path / "r.safetensors")
        composite = zr.register_trained("my_rules", path)
        path.unlink()
        assert composite().rules is composite().rules
        assert composite().rules.sites

    def test_name_clash(self, tmp_path: Path) -> None:
        path = trained(vgg(), images()).save(tmp_path / "r.safetensors")
        for taken in ("epsilon_plus", "learned_gradient"):
            with pytest.raises(zr.RuleError, match=f"'{taken}' belongs to .*; choose another"):
                zr.register_trained(taken, path)
            with pytest.raises(zr.RuleError, match="belongs to"):
                zr.register_trained(taken, path, overwrite=True)
        first = zr.register_trained("my_rules", path)
        with pytest.raises(zr.RuleError, match="'my_rules' belongs to"):
            zr.register_trained("my_rules", path)
        assert COMPOSITES["my_rules"] is first
        assert zr.register_trained("my_rules", path, overwrite=True) is COMPOSITES["my_rules"] is not first

    def test_unreadable_file(self, tmp_path: Path) -> None:
        with pytest.raises(zr.RuleError, match="no rule set at"):
            zr.register_trained("my_rules", tmp_path / "nothing")
        assert "my_rules" not in COMPOSITES

    def test_rules_by_path(self, tmp_path: Path) -> None:
        model, x = vgg(), images()
        rules = trained(model, x)
        path = rules.save(tmp_path / "r.safetensors")
        for given in (path, str(path), rules):
            with zr.LearnedGradient(rules=given).context(model):
                assert torch.equal(attribution(model, x, None), attribution(model, x, rules))


def test_rules_of_another_composite_are_refused() -> None:
    rules = trained(vgg(), images(), composite="learned_guided_backprop")
    with pytest.raises(zr.RuleError, match="learned_guided_backprop"):
        zr.LearnedGradient(rules=rules)


def test_resnet_canonizer_and_the_tracker_leave_no_forward() -> None:
    from torchvision.models.resnet import BasicBlock

    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4), nn.Flatten(), nn.Linear(256, 5)))
    x = images()
    rules = trained(model, x)
    expected = attribution(model, x, rules)
    with Gradient(model, rules.composite(canonizers=[ResNetCanonizer()])) as attributor:
        _, relevance = attributor(x.detach(), one_hot(torch.zeros(2, 5).double()))
    torch.testing.assert_close(relevance, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert all(m._forward_pre_hooks == {} for m in model.modules())


def test_half_precision_parameters_stay_in_single(tmp_path: Path) -> None:
    model = twin(vgg()).to(torch.bfloat16)
    rules = zr.RuleSet.build(model, images().to(torch.bfloat16))
    assert all(p.dtype == torch.float32 for p in rules.parameters())
    loaded = zr.RuleSet.load(rules.save(tmp_path / "r.safetensors", model), model)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
