"""What a model's name, folder or file says about the model."""
