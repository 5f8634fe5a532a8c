"""The lab: a model with its processor, questions, conversations."""
