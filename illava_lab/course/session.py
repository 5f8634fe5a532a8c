"""The first and the last cell of every notebook: the set-up, and where to say what was unclear."""

from __future__ import annotations

import datetime
import html
import os
import platform
import random
import sys
from importlib.metadata import version
from os import PathLike
from urllib.parse import urlencode

import numpy as np
import torch
from IPython.display import display

from illava_lab.lab import Lab, load


def set_up(source: str | PathLike | None = None, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Lab:
    """Load the model, set every seed, turn on Colab's widgets, and print what a reader needs to repeat a figure.

    Args:
        source, device, dtype: as in `illava_lab.load`; nothing for the embedded model.

    Raises:
        LabError: as `illava_lab.load`.
    """
    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    lab = load(source, device, dtype)
    print(f"device    {_device(lab)}, {dtype}")
    print(f"versions  {_versions()}")
    print(f"mode      {'embedded model, offline' if source is None else lab.source}")
    print(f"seed      {seed}, {datetime.date.today().isoformat()}")
    return lab


def _versions() -> str:
    names = ("illava-lab", "torch", "transformers", "numpy")
    return ", ".join([*(f"{name} {version(name)}" for name in names), f"Python {platform.python_version()}"])


def feedback(notebook: str, repository: str) -> None:
    """Display a link to a new issue that already says which notebook and which versions it is about.

    Args:
        repository: what the set-up cell installs from, such as ``git+https://github.com/illava-lab/illava-lab``.
    """
    address = repository.removeprefix("git+").split("@")[0].removesuffix(".git")
    body = f"Notebook: {notebook}\nVersions: {_versions()}\n\nWhat happened, or what was unclear:\n"
    link = f"{address}/issues/new?{urlencode({'title': f'{notebook}: ', 'body': body})}"
    page = f'<a href="{html.escape(link)}" target="_blank">Tell us what was unclear or wrong in this notebook</a>'
    display({"text/plain": link, "text/html": page}, raw=True)


def _device(lab: Lab) -> str:
    device = lab.model.device
    if device.type != "cuda":
        return f"{device.type} ({os.cpu_count()} cores, {torch.get_num_threads()} used)"
    card = torch.cuda.get_device_properties(device)
    return f"{device} ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
