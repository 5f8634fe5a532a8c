"""The one exception that means "you asked for something that cannot be": its text is a full sentence for a person."""


class LabError(ValueError):
    """Bad input, named with the argument, the value and what is allowed. The command line prints it and exits with 2."""
