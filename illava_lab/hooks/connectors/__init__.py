"""From the rows of a tower to the placeholders of a prompt."""
