"""Whether lmms-eval is there. Without torch, for the command line answers at once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from illava_lab.errors import LabError

TRIED = "0.7.3"
HOW = f"pip install 'illava-lab[lmms]', then pip install --no-deps lmms-eval=={TRIED}"


def check_installed() -> str:
    """The version of lmms-eval.

    Raises:
        LabError: it is not installed; says how.
    """
    try:
        return version("lmms-eval")
    except PackageNotFoundError:
        raise LabError(f"this needs lmms-eval: {HOW}") from None


def check_works() -> str:
    """The same, once it is known that it can be imported.

    Raises:
        LabError: it is not installed, or a package that it imports is not.
    """
    found = check_installed()
    try:
        import lmms_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise LabError(f"lmms-eval {found} cannot be imported ({error}): {HOW}") from None
    return found
