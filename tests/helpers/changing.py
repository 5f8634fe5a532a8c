"""Strategies whose scores hang on one number, @, that stands in another kind of place for each of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = "import torch\nimport illava_lab as il\n"
SCORE = "tokens.hidden.norm(dim=-1)"


def cls(factor: str, base: str = "il.Scorer", more: str = "") -> str:
    body = "".join(f"    {line}\n" for line in more.splitlines())
    return (
        f"class Mine({base}):\n    name = NAME\n{body}    def score(self, tokens):\n        return {factor} * {SCORE}\n"
    )


# kind -> file -> text; mine.py has the strategy, in a folder of its own. Further files are modules beside it.
KINDS: dict[str, dict[str, str]] = {
    "literal": {"mine.py": cls("(@)")},
    "class attribute": {"mine.py": cls("self.factor", more="factor = @")},
    "annotated class attribute": {"mine.py": "from typing import ClassVar\n" + cls("self.factor", more="factor: ClassVar[int] = @")},
    "global constant": {"mine.py": "FACTOR = @\n" + cls("FACTOR")},
    "global dict": {"mine.py": "FACTORS = {'a': [{'b': @}]}\n" + cls("FACTORS['a'][0]['b']")},
    "global set": {"mine.py": "FACTORS = {'a', 'b', 'c', @}\n" + cls("(1 if 1 in FACTORS else -1)")},
    "global tensor": {"mine.py": "FACTOR = torch.tensor([@], dtype=torch.bfloat16)\n" + cls("FACTOR")},
    "global array": {"mine.py": "import numpy as np\nFACTOR = np.full(1000, @)\n" + cls("FACTOR[0]")},
    "global object": {"mine.py": "class Box:\n    def __init__(self, x):\n        self.x = x\nBOX = Box(@)\n" + cls("BOX.x")},
    "global slots": {"mine.py": "class Box:\n    __slots__ = 'x',\nBOX = Box()\nBOX.x = @\n" + cls("BOX.x")},
    "enum": {"mine.py": "import enum\nclass Sign(enum.Enum):\n    UP = @\n" + cls("Sign.UP.value")},
    "named tuple": {"mine.py": "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int = @\n" + cls("P().x")},
    "helper": {"mine.py": "def helper():\n    return @\n" + cls("helper()")},
    "helper of a helper": {"mine.py": "def deep():\n    return @\ndef helper():\n    return deep()\n" + cls("helper()")},
    "default argument": {"mine.py": "def helper(x=@):\n    return x\n" + cls("helper()")},
    "keyword default": {"mine.py": "def helper(*, x=@):\n    return x\n" + cls("helper()")},
    "closure": {"mine.py": "def make(x):\n    def inner():\n        return x\n    return inner\nhelper = make(@)\n" + cls("helper()")},
    "lambda": {"mine.py": "helper = lambda: [@ for _ in range(1)][0]\n" + cls("helper()")},
    "nested class": {"mine.py": cls("self.Inner().get()", more="class Inner:\n    def get(self):\n        return @")},
    "local class": {"mine.py": "def helper():\n    class Box:\n        'doc'\n        x = @\n    return Box.x\n" + cls("helper()")},
    "decorator": {"mine.py": "def times(f):\n    return lambda *a: @ * f(*a)\n" + cls("self.one()", more="@@times\ndef one(self):\n    return 1")},
    "decorator of a library": {"mine.py": "@@torch.no_grad()\ndef helper():\n    return @\n" + cls("helper()")},
    "class decorator": {"mine.py": "def deco(c):\n    c.factor = @\n    return c\n@@deco\n" + cls("self.factor")},
    "cached helper": {"mine.py": "import functools\n@@functools.lru_cache\ndef helper():\n    return @\n" + cls("helper()")},
    "context manager": {"mine.py": "import contextlib\n@@contextlib.contextmanager\ndef helper():\n    yield @\n" + cls("self.one()", more="def one(self):\n    with helper() as x:\n        return x")},
    "single dispatch": {"mine.py": "import functools\n@@functools.singledispatch\ndef helper(x):\n    return 1\n@@helper.register\ndef _(x: int):\n    return @\n" + cls("helper(3)")},
    "partial": {"mine.py": "import functools\nhelper = functools.partial(max, @, -5)\n" + cls("helper()")},
    "property": {"mine.py": cls("self.factor", more="@@property\ndef factor(self):\n    return @")},
    "cached property": {"mine.py": "import functools\n" + cls("self.factor", more="@@functools.cached_property\ndef factor(self):\n    return @")},
    "static method": {"mine.py": cls("self.get()", more="@@staticmethod\ndef get():\n    return @")},
    "class method": {"mine.py": cls("self.get()", more="@@classmethod\ndef get(cls):\n    return @")},
    "descriptor": {"mine.py": "class D:\n    def __get__(self, obj, owner):\n        return @\n" + cls("self.factor", more="factor = D()")},
    "setting": {"mine.py": cls("self.factor", more="factor: int = @")},
    "setting made": {"mine.py": "import dataclasses\n" + cls("self.factor", more="factor: int = dataclasses.field(default_factory=lambda: @, repr=False)")},
    "after init": {"mine.py": cls("self.factor", more="def __post_init__(self):\n    object.__setattr__(self, 'factor', @)")},
    "base class": {"mine.py": "class Base(il.Scorer):\n    def factor(self):\n        return @\n" + cls("self.factor()", "Base")},
    "mixin": {"mine.py": "class Mixin:\n    factor = @\n" + cls("self.factor", "il.Scorer, Mixin")},
    "metaclass": {"mine.py": "class Meta(type):\n    factor = @\n" + "class Mine(il.Scorer, metaclass=Meta):\n    name = NAME\n" + f"    def score(self, tokens):\n        return type(self).factor * {SCORE}\n"},
    "module": {"mine.py": "import parts_KEY\n" + cls("parts_KEY.factor()"), "parts_KEY.py": "def factor():\n    return @\n"},
    "name from a module": {"mine.py": "from parts_KEY import factor\n" + cls("factor()"), "parts_KEY.py": "X = @\ndef factor():\n    return X\n"},
    "module of a module": {"mine.py": "import pack_KEY.inner.deep\n" + cls("pack_KEY.inner.deep.factor()"), "pack_KEY/__init__.py": "", "pack_KEY/inner/__init__.py": "", "pack_KEY/inner/deep.py": "from ..parts import X\ndef factor():\n    return X\n", "pack_KEY/parts.py": "X = @\n"},
    "module as a value": {"mine.py": "import parts_KEY\n" + cls("getattr(parts_KEY, 'fac' + 'tor')"), "parts_KEY.py": "factor = @\n"},
    "import in a function": {"mine.py": cls("self.one()", more="def one(self):\n    import parts_KEY\n    return parts_KEY.factor()"), "parts_KEY.py": "def factor():\n    return @\n"},
    "name imported in a function": {"mine.py": cls("self.one()", more="def one(self):\n    from parts_KEY import factor\n    return factor"), "parts_KEY.py": "factor = @\n"},
    "relative import in a function": {"mine.py": "from pack_KEY.own import one\n" + cls("one()"), "pack_KEY/__init__.py": "", "pack_KEY/own.py": "def one():\n    from .parts import factor\n    return factor\n", "pack_KEY/parts.py": "factor = @\n"},
    "base class elsewhere": {"mine.py": "from parts_KEY import Base\n" + cls("self.factor()", "Base"), "parts_KEY.py": HEAD + "X = @\nclass Base(il.Scorer):\n    def factor(self):\n        return X\n"},
    "strategy by name": {"mine.py": "@@il.register\nclass Other(il.Scorer):\n    name = 'other-KEY'\n" + f"    def score(self, tokens):\n        return @ * {SCORE}\n" + "class Mine(il.Scorer):\n    name = NAME\n    def score(self, tokens):\n        return il.get_strategy('other-KEY')().score(tokens)\n"},
    "star arguments": {"mine.py": "def helper(*a, **k):\n    return a[0]\n" + cls("helper(*[@])")},
    "generator": {"mine.py": "def helper():\n    yield from (x for x in (@,))\n" + cls("next(helper())")},
    "branch": {"mine.py": "def helper():\n    try:\n        if @ > 0: return 1\n        raise KeyError\n    except KeyError:\n        return -1\n" + cls("helper()")},
    "monkey patch": {"mine.py": cls("self.one()", more="def one(self):\n    return 3") + "Mine.one = lambda self: @\n"},
}  # fmt: skip

# Of these, rows are measured: some import or remember something while they run.
MEASURED = ("literal", "cached helper", "setting", "module of a module", "import in a function", "strategy by name")

# What does not matter to what a file computes: text before it and after it.
BESIDE = (
    '"""A docstring."""\n\n# a comment\n\nUNRELATED = 1\n\n\ndef unrelated():\n    return UNRELATED\n\n\n',
    "\n\nclass Unrelated:\n    x = 3\n",
)


def write(kind: str, folder: Path, number: int, beside: bool = False) -> None:
    """Write the files of a kind, with a number in its place.

    Args:
        beside: with comments, docstrings and unrelated code around.
    """
    key = name_of(kind).replace("-", "_")
    for name, text in KINDS[kind].items():
        if name == "mine.py":
            name, text = f"strategy_{key}.py", HEAD + text + "il.register(Mine)\n"
        text = text.replace("@@", "\0").replace("@", str(number)).replace("\0", "@")
        text = text.replace("NAME", repr(name_of(kind))).replace("KEY", key)
        if beside and "__init__" not in name and kind != "module as a value":  # which is taken with all that it holds
            text = BESIDE[0] + text.replace("):\n    return", "):\n    'doc'  # why\n\n    return") + BESIDE[1]
        path = folder / name.replace("KEY", key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def name_of(kind: str) -> str:
    return "t-" + kind.replace(" ", "-")


def run(folder: Path, out: Path) -> None:
    """Print the digest of every strategy whose file is in the folder, and compare those of `MEASURED`."""
    import importlib

    import torch
    from helpers.labs import small_lab

    import illava_lab as il
    from illava_lab.measuring.digest import digest

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    modules = sorted(path.stem for path in folder.glob("strategy_*.py"))
    made = [importlib.import_module(module).Mine for module in modules]
    print(json.dumps({mine.name: digest(mine()) for mine in made}))
    task = il.load_task("test").limited(1)
    one = il.Task("one question", task.samples[:1], task.images)
    small = il.Lab(small_lab("clip-llama").model, small_lab("clip-llama").processor, "small")
    il.compare(small, [name_of(kind) for kind in MEASURED], [0.5], task=one, timing=False, out=out, progress=False)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
