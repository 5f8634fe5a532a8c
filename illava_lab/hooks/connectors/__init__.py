"""From the rows of a tower to the placeholders of a prompt: one file for each way in which models get there."""
