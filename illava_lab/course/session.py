"""The first and the last cell of every notebook: the set-up; licences, citation, and where to say what was unclear."""

from __future__ import annotations

import datetime
import html
import platform
import random
import sys
from importlib.metadata import version
from os import PathLike
from urllib.parse import urlencode

import numpy as np
import psutil
import torch
from IPython.display import display

from illava_lab.measuring.machine import machine
from illava_lab.session.lab import Lab
from illava_lab.session.load import load

# Authors as on arXiv since the version of ICLR 2026.
PAPER = """\
@inproceedings{hu2026illava,
  title = {iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models},
  author = {Hu, Lianyu and Gao, Liqing and Shang, Fanhua and Wan, Liang and Feng, Wei},
  booktitle = {International Conference on Learning Representations},
  year = {2026},
  note = {arXiv:2412.06263}
}"""
LICENCES = (
    "The lab, its embedded model and its questions: Apache-2.0. The photographs and digits in the questions: "
    "under the licences that data/model/README.md names."
)


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


def citation(repository: str) -> str:
    """What to cite, in BibTeX: this lab, in the version that runs, and the paper that it is about."""
    own = f"""\
@software{{illava_lab,
  title = {{illava-lab: visual-token merging in LLaVA models}},
  author = {{{{The illava-lab authors}}}},
  version = {{{version("illava-lab")}}},
  url = {{{_address(repository)}}}
}}"""
    return f"{own}\n{PAPER}"


def feedback(notebook: str, repository: str) -> None:
    """Display licences, what to cite, and a link to a new issue that names the notebook and the versions already.

    Args:
        repository: what the set-up cell installs from, such as ``git+https://github.com/illava-lab/illava-lab``.
    """
    body = f"Notebook: {notebook}\nVersions: {_versions()}\n\nWhat happened, or what was unclear:\n"
    link = f"{_address(repository)}/issues/new?{urlencode({'title': f'{notebook}: ', 'body': body})}"
    page = (
        f"<p><b>Licences.</b> {LICENCES}</p>"
        f"<p><b>Cite this</b></p><pre>{html.escape(citation(repository))}</pre>"
        f'<p><a href="{html.escape(link)}" target="_blank">Tell us what was unclear or wrong in this notebook</a></p>'
    )
    text = f"Licences. {LICENCES}\n\nCite this\n{citation(repository)}\n\nFeedback: {link}"
    display({"text/plain": text, "text/html": page}, raw=True)


def _address(repository: str) -> str:
    return repository.removeprefix("git+").split("@")[0].removesuffix(".git")


def _device(lab: Lab) -> str:
    device = lab.model.device
    if device.type != "cuda":
        memory = psutil.virtual_memory().total / 2**30
        return f"{device.type} ({machine()}, {torch.get_num_threads()} used, {memory:.0f} GiB of memory)"
    card = torch.cuda.get_device_properties(device)
    return f"{device} ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
