"""The command line: words that commands share, and commands that are a file each."""
