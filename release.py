"""Build what `pip install illava-lab` would get, and use it where nothing else is: `make release`.

It takes the last commit: what is not committed is no part of a release. Links of the README get the repository's
address before them, because on PyPI there is no repository around it. The sdist, and the wheel made from it, are
checked by twine; then each is installed into an empty environment with all that it needs, as a stranger would, and used
away from the clone. Nothing is uploaded; the last line says how.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

CLONE = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/illava-lab/illava-lab"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)\s]+)\)")
USED = """
import illava_lab as il
from illava_lab.paths import clone_dir, notebooks_dir
assert clone_dir() is None and len(list(notebooks_dir().glob("*.ipynb"))) >= 8
assert il.load().ask(il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "illava").text == "red"
print(il.__version__)
"""


def main() -> None:
    """Build, check and try; stop at the first thing that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-index", metavar="URL", help="a further index, for a build of torch")
    options = parser.parse_args()
    if left := run("git", "status", "--porcelain", cwd=CLONE).stdout.strip():
        print(f"not committed, and so not in it:\n{left}")
    work, dist = CLONE / ".release", CLONE / "dist"
    for folder in (work, dist):
        shutil.rmtree(folder, ignore_errors=True)
    source = lay_out(work / "source")
    run(sys.executable, "-m", "build", "--outdir", dist, source)
    built = sorted(dist.iterdir())
    print("built:", *(path.name for path in built))
    print(run(sys.executable, "-m", "twine", "check", "--strict", *built).stdout.strip())
    for path in built:
        try_out(path, work / path.suffix.strip("."), options.torch_index)
    shutil.rmtree(work)
    print("Both are well. To publish them: python -m twine upload dist/*")


def lay_out(folder: Path) -> Path:
    """The files of the last commit, the README with links that lead somewhere from everywhere."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD", cwd=CLONE)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    readme = folder / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def absolute(text: str) -> str:
    """Markdown whose links within the repository have its address before them; pictures that of the picture itself."""
    return LINK.sub(
        lambda link: f"{link[1]}[{link[2]}]({REPOSITORY}/{'raw' if link[1] else 'blob'}/main/{link[3]})", text
    )


def try_out(built: Path, folder: Path, index: str | None) -> None:
    """Install one of them into an environment that holds nothing, and use it in a folder that holds nothing."""
    print(f"{built.name}: installing it and what it needs into an empty environment, some minutes", flush=True)
    venv.create(folder / "env", with_pip=True)
    base = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else sysconfig.get_default_scheme()
    scripts = Path(sysconfig.get_path("scripts", scheme, vars=base))
    python = scripts / Path(sys.executable).name
    more = ["--extra-index-url", index] if index else []
    run(python, "-m", "pip", "install", "--quiet", *more, built)
    empty = folder / "empty"
    empty.mkdir()
    lab = scripts / "illava-lab"
    compare = "compare --strategies illava --keep 0.5 --limit 8 --no-timing --out mine"
    for what, command in {
        "pip check": [python, "-m", "pip", "check"],
        "the package away from the clone": [python, "-c", USED],
        "illava-lab doctor": [lab, "doctor"],
        f"illava-lab {compare}": [lab, *compare.split()],
        "illava-lab submit mine": [lab, "submit", "mine"],
    }.items():
        run(*command, cwd=empty)
        print(f"  fine: {what}", flush=True)
    shutil.rmtree(folder)


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, without the variables that would lead back to this environment; show what a failure printed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
