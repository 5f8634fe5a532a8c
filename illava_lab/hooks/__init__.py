"""The only code that changes a model, and changes it back."""
