"""Everything that an attachment changes in a model, and the way back.

What is about to change is noted before it changes, and taking back looks at what is there: an interrupt at any moment
leaves nothing that `undo` does not find, and `undo` may be called again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from torch import nn

from illava_lab.blocks import block, undone
from illava_lab.hooks.attachment import Attachment

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


class Hook:
    """A function that a model calls while a strategy is attached; it refuses to be copied with the model.

    Args:
        original: what it stands in the place of, and is called with as its first argument; None for a hook.
    """

    def __init__(self, attachment: Attachment, call: Callable, original: Callable | None = None) -> None:
        if original is not None:
            # The signature stays readable: generate looks at it to decide what it may encode ahead.
            functools.update_wrapper(self, original)
            call = functools.partial(call, original)
        self.attachment, self.call = attachment, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.attachment.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.attachment.__deepcopy__({})


class Changes:
    """The changes that one attachment makes."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self._modules: list[nn.Module] = []  # those with hooks
        self._attributes: list[tuple[nn.Module, str, Any, Any]] = []  # owner, name, ours, what was there

    def pre_hook(self, module: nn.Module, call: Callable, with_kwargs: bool = False) -> None:
        """Let `call(module, args)`, or `call(module, args, kwargs)`, come before the other hooks of a module."""
        self._modules.append(module)
        module.register_forward_pre_hook(Hook(self.attachment, call), prepend=True, with_kwargs=with_kwargs)

    def hook(self, module: nn.Module, call: Callable) -> None:
        """Let `call(module, args, out)` come before the other hooks that see what a module returned."""
        self._modules.append(module)
        module.register_forward_hook(Hook(self.attachment, call), prepend=True)

    def method(self, owner: nn.Module, name: str, around: Callable) -> None:
        """Let one module instance call `around(original, ...)` instead of a method."""
        self.attribute(owner, name, Hook(self.attachment, around, getattr(owner, name)))

    def attribute(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module instance."""
        self._attributes.append((owner, name, value, vars(owner).get(name, inspect.Parameter.empty)))
        object.__setattr__(owner, name, value)

    def undo(self) -> None:
        """Take everything back, the last change first."""
        for owner, name, ours, before in reversed(self._attributes):
            if vars(owner).get(name) is not ours:
                continue  # not set yet, or taken back already
            if before is inspect.Parameter.empty:
                vars(owner).pop(name, None)
            else:
                object.__setattr__(owner, name, before)
        for module in self._modules:
            take_hooks(module, lambda hook: isinstance(hook, Hook) and hook.attachment is self.attachment)


def take_hooks(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Take the hooks that are ours from a module; as often as one likes."""
    for hooks in (getattr(module, name) for name in _HOOKS):
        for key, hook in list(hooks.items()):
            if ours(hook):
                for flags in (getattr(module, name) for name in _FLAGS):
                    flags.pop(key, None)
                hooks.pop(key, None)


@block
def before_forward(module: nn.Module, call: Callable[[nn.Module, tuple], Any]) -> Iterator[None]:
    """While the block is open, `call(module, args)` comes before the other hooks of a module."""
    with undone(lambda: take_hooks(module, lambda hook: hook is call)):
        module.register_forward_pre_hook(call, prepend=True)
        yield
