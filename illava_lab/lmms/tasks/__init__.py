"""The lab's tasks for lmms-eval: a YAML file each."""
