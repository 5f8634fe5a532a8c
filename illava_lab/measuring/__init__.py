"""Time, memory, tasks, statistics, and the tables made of them."""
