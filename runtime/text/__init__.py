"""Text around the model: tokenizer, chat templates, streams, stop strings."""
