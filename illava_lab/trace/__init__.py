"""What happened: reduction steps, and which patches each survivor stands for."""
