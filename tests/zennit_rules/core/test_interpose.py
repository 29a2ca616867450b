"""Interposed layers, and each private name the package leans on."""

from __future__ import annotations

import _thread
import threading
import time
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zennit_rules import _compat
from zennit_rules.core.interpose import interpose


def adding(amount: float) -> Any:
    """A layer that adds to the output."""
    return lambda call_next, *args, **kwargs: call_next(*args, **kwargs) + amount


class TestInterpose:
    def test_the_last_one_is_outermost(self) -> None:
        module, order = nn.Identity(), []

        def layer(name: str) -> Any:
            def around(call_next: Any, x: Tensor) -> Tensor:
                order.append(name)
                return call_next(x)

            return around

        handles = [interpose(module, layer(name)) for name in "abc"]
        module(torch.zeros(1))
        assert order == ["c", "b", "a"]
        for handle in handles:
            handle.remove()
        assert "forward" not in module.__dict__

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
    def test_removed_in_any_order(self, order: tuple[int, ...]) -> None:
        module = nn.Identity()
        handles, expected = [interpose(module, adding(10**k)) for k in range(3)], 111
        for k in order:
            assert module(torch.zeros(1)) == expected
            handles[k].remove()
            handles[k].remove()
            expected -= 10**k
        assert module(torch.zeros(1)) == 0
        assert "forward" not in module.__dict__

    def test_one_function_interposed_twice_is_removed_once(self) -> None:
        module, around = nn.Identity(), adding(1)
        first, second = interpose(module, around), interpose(module, around)
        assert module(torch.zeros(1)) == 2
        first.remove()
        assert module(torch.zeros(1)) == 1
        second.remove()
        assert "forward" not in module.__dict__

    def test_the_users_own_forward_comes_back(self) -> None:
        module = nn.Identity()
        own = module.__dict__["forward"] = lambda x: x * 3
        handle = interpose(module, adding(1))
        assert module(torch.ones(1)) == 4
        handle.remove()
        assert module.__dict__["forward"] is own

    def test_someone_who_replaced_forward_meanwhile_keeps_it(self) -> None:
        module = nn.Identity()
        handle = interpose(module, adding(1))
        theirs = module.__dict__["forward"] = lambda x: x * 3
        handle.remove()
        assert module.__dict__["forward"] is theirs

    def test_keyword_arguments_and_errors_pass_through(self) -> None:
        class Failing(nn.Module):
            def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
                if scale < 0:
                    raise KeyboardInterrupt
                return x * scale

        module = Failing()
        handle = interpose(module, adding(1))
        assert module(torch.ones(1), scale=3.0) == 4
        with pytest.raises(KeyboardInterrupt):
            module(torch.ones(1), scale=-1.0)
        handle.remove()
        assert module(torch.ones(1)) == 1

    def test_the_class_is_untouched(self) -> None:
        interpose(nn.Identity(), adding(1))
        assert nn.Identity()(torch.zeros(1)) == 0


class TestCompat:
    """Fails when zennit or torch moves a name this package needs."""

    def test_composites_is_a_registry_of_classes(self) -> None:
        assert isinstance(_compat.COMPOSITES, dict)
        assert all(isinstance(c, type) and issubclass(c, _compat.Composite) for c in _compat.COMPOSITES.values())
        assert "epsilon_plus" in _compat.COMPOSITES

    def test_composite(self) -> None:
        composite = _compat.Composite()
        composite.handles.append(_Handle())
        composite.hook_refs.add(_compat.Hook())
        composite.remove()
        assert not composite.hook_refs
        assert hasattr(composite, "context")
        assert hasattr(composite, "inactive")

    def test_composite_asks_module_map_for_each_module(self) -> None:
        asked = []

        def module_map(ctx: dict[str, Any], name: str, module: nn.Module) -> None:
            asked.append(name)

        with _compat.Composite(module_map=module_map).context(nn.Sequential(nn.ReLU())):
            assert asked == ["", "0"]

    def test_layer_map_composite(self) -> None:
        hook = _compat.Hook()
        composite = _compat.LayerMapComposite(layer_map=[(nn.ReLU, hook)], canonizers=[])
        assert composite.module_map({}, "x", nn.ReLU()) is hook
        assert composite.module_map({}, "x", nn.Tanh()) is None

    def test_hook(self) -> None:
        hook = _compat.Hook()
        assert hook.active
        hook.remove()
        assert isinstance(hook.copy(), _compat.Hook)

    def test_canonizer(self) -> None:
        seen = []

        class Noted(_compat.Canonizer):
            def apply(self, root_module: nn.Module) -> list[Any]:
                seen.append("apply")
                return [self]

            def register(self) -> None:
                pass

            def remove(self) -> None:
                seen.append("remove")

            def copy(self) -> Any:
                return self

        with _compat.Composite(canonizers=[Noted()]).context(nn.ReLU()):
            pass
        assert seen == ["apply", "remove"]

    def test_removable_handles(self) -> None:
        hook = _compat.Hook()
        removed = []
        hook.remove = lambda: removed.append(1)
        handles = _compat.RemovableHandleList([_compat.RemovableHandle(hook)])
        handles.remove()
        assert removed == [1]
        assert not handles

    def test_shape_of_node(self) -> None:
        x = torch.randn(2, 3, requires_grad=True)
        assert _compat.shape_of_node(x.mm(torch.randn(3, 4)).grad_fn) == (2, 4)

    def test_disable_torch_function_switches_modes_off(self) -> None:
        seen = []

        class Noted(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(func)
                return func(*args, **(kwargs or {}))

        with Noted():
            with _compat.DisableTorchFunction():
                torch.relu(torch.zeros(1))
            assert not seen
            torch.relu(torch.zeros(1))
        assert seen

    def test_marks_of_compiled_and_scripted_models(self) -> None:
        assert hasattr(torch.compile(nn.ReLU()), "_orig_mod")
        module = nn.ReLU()
        assert module._compiled_call_impl is None
        module.compile()
        assert module._compiled_call_impl is not None
        assert isinstance(torch.jit.script(nn.ReLU()), torch.jit.ScriptModule)
        assert _compat.unsupported_model(nn.Sequential(nn.ReLU())) is None

    def test_in_backward(self) -> None:
        seen = []
        x = torch.ones(2, requires_grad=True)
        y = x * 2
        y.register_hook(lambda g: seen.append(_compat.in_backward()))
        y.sum().backward()
        assert seen == [True]
        assert not _compat.in_backward()

    def test_trees(self) -> None:
        flat, spec = _compat.tree_flatten(((1, [2]), {"a": 3}))
        assert flat == [1, 2, 3]
        assert _compat.tree_unflatten(flat, spec) == ((1, [2]), {"a": 3})

    def test_function_of_a_node(self) -> None:
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x * 2

            @staticmethod
            def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
                return g * 2

        out = Double.apply(torch.ones(3, requires_grad=True))
        assert _compat.function_of_node(out.grad_fn) is Double
        assert _compat.function_of_node((out * 2).grad_fn) is None

    def test_hooks_of_a_module(self) -> None:
        relu, hook = nn.ReLU(), _compat.Hook()
        relu.register_forward_pre_hook(lambda module, args: None)
        assert _compat.zennit_hooks(relu) == []
        with _compat.LayerMapComposite([(nn.ReLU, hook)]).context(nn.Sequential(relu)):
            assert [type(found) for found in _compat.zennit_hooks(relu)] == [_compat.Hook]
        assert _compat.zennit_hooks(relu) == []

    def test_attributes_without_hooks(self) -> None:
        relu, mine = nn.ReLU(), lambda module, args: None
        relu.register_forward_pre_hook(mine)
        with _compat.LayerMapComposite([(nn.ReLU, _compat.Hook())]).context(nn.Sequential(relu)):
            state, before = dict(vars(relu)), len(relu._forward_pre_hooks)
            _compat.without_zennit_hooks(state)
            assert list(state["_forward_pre_hooks"].values()) == [mine]
            assert not state["_forward_hooks"]
            assert len(relu._forward_pre_hooks) == before == 2  # those of the module are another container

    def test_on_autograd_thread(self) -> None:
        assert not _compat.on_autograd_thread()
        seen: list[Any] = []

        def dummy() -> None:  # as on a thread that C++ started: Python knows none, and makes one up
            seen.append(type(threading.current_thread()))

        _thread.start_new_thread(dummy, ())
        while not seen:
            time.sleep(0.001)
        assert seen == [threading._DummyThread]

    def test_named_merge(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, eps=0.0)).eval()
        model[1].running_mean.fill_(0.5)
        x = torch.randn(4, 2)
        expected, instances = model(x), _compat.NamedMergeBatchNorm([(["0"], "1")]).apply(model)
        assert not model[1].running_mean.any()
        torch.testing.assert_close(model(x), expected)
        assert instances[0].batch_norm_params is not None
        instances[0].remove()
        torch.testing.assert_close(model(x), expected)

    def test_active_transforms(self) -> None:
        seen: list[str | None] = []

        def note(x: torch.Tensor) -> torch.Tensor:
            seen.append(_compat.active_transform())
            return x.sum()

        x = torch.ones(2)
        torch.func.grad(note)(x)
        torch.vmap(note)(x[None])
        torch.func.jvp(note, (x,), (x,))
        with forward_ad.dual_level():
            note(x)
        assert seen == ["torch.func (grad)", "torch.func (vmap)", "torch.func (jvp)", "forward-mode AD"]
        assert _compat.active_transform() is None

    def test_one_gradient_at_a_time(self) -> None:
        shapes = []

        class Rows(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return x + y

            @staticmethod
            @_compat.one_gradient_at_a_time
            def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
                shapes.append(g.shape)
                return g.flatten(0).kthvalue(2).values * torch.ones(3), None

        x, g = torch.zeros(3, requires_grad=True), torch.arange(12.0).reshape(4, 3)
        (found,) = torch.autograd.grad(Rows.apply(x, torch.ones(3)), x, g, is_grads_batched=True)
        assert torch.equal(found, g[:, 1:2].expand(4, 3))
        assert shapes == [(3,)] * 4

    def test_all_names_are_tested_here(self) -> None:
        assert set(_compat.__all__) == {
            "COMPOSITES", "Canonizer", "Composite", "DisableTorchFunction", "Hook", "LayerMapComposite",
            "NamedMergeBatchNorm", "RemovableHandle", "RemovableHandleList", "active_transform",
            "function_of_node", "in_backward", "on_autograd_thread", "one_gradient_at_a_time", "shape_of_node",
            "tree_flatten", "tree_unflatten", "unsupported_model", "without_zennit_hooks", "zennit_hooks",
        }  # fmt: skip


class _Handle:
    def remove(self) -> None:
        """Nothing to do."""
