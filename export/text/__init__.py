"""Reads the text files beside a checkpoint, and writes what they mean in the form that a bundle ships."""
