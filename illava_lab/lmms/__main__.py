"""Print the folder of the lab's tasks, for ``lmms-eval --include_path "$(python -m illava_lab.lmms)"``."""

from illava_lab.lmms import TASKS

print(TASKS)
