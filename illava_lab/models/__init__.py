"""What a model is: families, layouts of placeholders, loading, processors, pictures and films."""
